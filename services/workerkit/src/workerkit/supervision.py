"""Watches one child: reads all it says, passes on what is wanted of it, ends it when it hangs."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from workerkit import child_events as events
from workerkit.intent import Control, Intent
from workerkit.launcher import Child, ChildExit
from workerkit.reporter import Reporter, pieces

logger = logging.getLogger(__name__)

TAIL_LINES = 20
LINGER_SECONDS = 30.0
PIPE_SECONDS = 3.0
KILL_SECONDS = 10.0
REPORTED_GARBAGE = 10


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a child may be silent, and how long it may take to save and end when it is asked to; seconds."""

    stall_seconds: float
    grace_seconds: float


@dataclass(frozen=True, slots=True)
class ChildResult:
    """What a child left. verdict is its own last word, None when it crashed.

    stalled: it was killed for its silence. out_of_memory: the kernel killed somebody meanwhile because memory ran out.
    """

    ended: ChildExit
    verdict: events.Done | events.Stopped | events.Failed | None
    stalled: bool
    tail: list[str] = field(default_factory=list)
    out_of_memory: bool = False


class Supervision:
    """One run of a child, called process in the log.

    on_checkpoint is called for each checkpoint that it has written whole.
    """

    def __init__(
        self,
        child: Child,
        reporter: Reporter,
        control: Control,
        patience: Patience,
        on_checkpoint: Callable[[events.CheckpointWritten], None],
        process: str,
    ) -> None:
        self._child = child
        self._reporter = reporter
        self._control = control
        self._patience = patience
        self._on_checkpoint = on_checkpoint
        self._process = process
        self._verdict: events.Done | events.Stopped | events.Failed | None = None
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._signs_of_life = 0
        self._garbage = 0
        self._stalled = False

    async def run(self) -> ChildResult:
        """Waits for the child's end. However this returns, the child and all it started are gone."""
        readers = [asyncio.create_task(self._read_events()), asyncio.create_task(self._read_log())]
        guards = [asyncio.create_task(self._pass_on_intents()), asyncio.create_task(self._watch_for_stall())]
        try:
            ended = await self._child.wait()
            await asyncio.wait(readers, timeout=PIPE_SECONDS)
            return ChildResult(ended, self._verdict, self._stalled, list(self._tail))
        finally:
            self._child.kill()
            for task in (*guards, *readers):
                task.cancel()
            for outcome in await asyncio.gather(*guards, *readers, return_exceptions=True):
                if isinstance(outcome, Exception):
                    logger.error("watching the child failed", exc_info=outcome)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(KILL_SECONDS):
                    await self._child.wait()

    async def _read_log(self) -> None:
        async for lines in self._child.log:
            self._signs_of_life += 1
            self._log([line.decode("utf-8", "replace") for line in lines])

    def _log(self, texts: list[str]) -> None:
        self._tail.extend(pieces(text)[-1] for text in texts[-TAIL_LINES:])
        self._reporter.log(texts)

    async def _read_events(self) -> None:
        async for lines in self._child.events:
            self._signs_of_life += 1
            for line in lines:
                self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            event = events.parse(line)
        except ValueError as error:
            self._garbage += 1
            if self._garbage <= REPORTED_GARBAGE:
                self._log([f"unreadable event from the {self._process} ({error}): {line[:200]!r}"])
            return
        match event:
            case events.Phase(name):
                self._reporter.phase(name)
            case events.Started(step, total_steps):
                self._reporter.started(step, total_steps)
            case events.Advanced():
                self._reporter.advanced(event)
            case events.Measured():
                self._reporter.measured(event)
            case events.CheckpointWritten():
                self._on_checkpoint(event)
            case events.LogText(text):
                self._log(text.splitlines())
            case events.Done() | events.Stopped() | events.Failed():
                self._verdict = event

    async def _pass_on_intents(self) -> None:
        """TERM when it shall save and end; KILL when it shall end now, or does not do so in time."""
        if await self._control.reached(Intent.RELEASE) < Intent.DISCARD:
            self._child.terminate()
        await self._control.reached(Intent.STOP_AND_SAVE)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience.grace_seconds):
                await self._control.reached(Intent.DISCARD)
        self._child.kill()

    async def _watch_for_stall(self) -> None:
        """Counts silence in ticks, so that a pause of the worker itself does not count as silence of the child."""
        tick = min(1.0, self._patience.stall_seconds / 10)
        silence, seen = 0.0, self._signs_of_life
        while silence < (LINGER_SECONDS if self._verdict else self._patience.stall_seconds):
            await asyncio.sleep(tick)
            silence = silence + tick if self._signs_of_life == seen else 0.0
            seen = self._signs_of_life
        self._stalled = self._verdict is None
        self._child.kill()
