"""How far the loading of a model is, told to everybody who waits for it."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

NEWS_SECONDS = 0.1


@dataclass(slots=True)
class Progress:
    """A phase and the share of it that is done, 0 to 100; 0 while unknown."""

    phase: str = ""
    percent: float = 0.0

    def enter(self, phase: str) -> None:
        """Begins a phase."""
        self.phase, self.percent = phase, 0.0


async def told(task: "asyncio.Future[Any]", progress: Progress) -> AsyncGenerator[tuple[str, float], None]:
    """Every change of a progress that is seen until the task has ended, however that was."""
    before = ("", 0.0)
    while True:
        ended, _ = await asyncio.wait((task,), timeout=NEWS_SECONDS)
        now = (progress.phase, round(progress.percent))
        if now != before and progress.phase:
            before = now
            yield now
        if ended:
            return
