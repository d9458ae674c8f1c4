"""How far the loading of a model is, told to everybody who waits for it."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

NEWS_SECONDS = 0.1


@dataclass(slots=True)
class Progress:
    """A phase and the share of it that is done, 0 to 100; 0 while unknown. begun are phases that were not told yet."""

    phase: str = ""
    percent: float = 0.0
    begun: list[str] = field(default_factory=list)

    def enter(self, phase: str) -> None:
        """Begins a phase."""
        self.phase, self.percent = phase, 0.0
        self.begun.append(phase)

    def follow(self, other: "Progress") -> None:
        """Is where another is."""
        if other.phase != self.phase:
            self.enter(other.phase)
        self.percent = other.percent


async def told(task: "asyncio.Future[Any]", progress: Progress) -> AsyncGenerator[tuple[str, float], None]:
    """Every phase of a progress, and changes within the last one, until the task has ended, however that was."""
    before = 0.0
    while True:
        ended, _ = await asyncio.wait((task,), timeout=NEWS_SECONDS)
        begun, progress.begun = progress.begun, []
        for phase in begun:
            before = 0.0
            yield phase, 0.0
        if progress.begun:  # a phase that has begun while the last one was told comes first
            continue
        if round(progress.percent) != before:
            before = round(progress.percent)
            yield progress.phase, before
        if ended:
            return
