"""What is wanted of a running attempt: it only ever becomes stronger."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeVar

T = TypeVar("T")


class Intent(IntEnum):
    """From going on to leaving everything as it lies."""

    GO_ON = 0
    # The worker leaves: save a checkpoint, give the task back.
    RELEASE = 1
    # The user wants it to end: save a checkpoint first.
    STOP_AND_SAVE = 2
    # The user wants it to end now.
    DISCARD = 3
    # The worker's time to leave has run out.
    HURRY = 4
    # The attempt belongs to another worker or is gone: touch nothing more.
    ABANDON = 5


@dataclass(frozen=True, slots=True)
class StopReason:
    """Why a task is to end although no user asked for it: a word for programs and a sentence."""

    reason: str
    message: str


class Interrupted(Exception):
    """Work was given up because of what is wanted now."""

    def __init__(self, intent: Intent) -> None:
        super().__init__(intent.name)
        self.intent = intent


STOPS = frozenset({Intent.STOP_AND_SAVE, Intent.DISCARD})


class Control:
    """Holds the strongest intent so far and wakes those who wait for one."""

    def __init__(self) -> None:
        self._intent = Intent.GO_ON
        self._reached = {intent: asyncio.Event() for intent in Intent}
        self._reached[Intent.GO_ON].set()
        self._asked: set[Intent] = set()
        self.stop_reason: StopReason | None = None

    @property
    def intent(self) -> Intent:
        return self._intent

    @property
    def stop_wanted(self) -> bool:
        """Whether the task is to end, whatever else is wanted."""
        return bool(self._asked & STOPS)

    def ask(self, intent: Intent, reason: StopReason | None = None) -> None:
        """Makes intent the aim unless a stronger one is. A stop without a reason is a user's, which needs none."""
        if intent in STOPS and (reason is None or not self.stop_wanted):
            self.stop_reason = reason
        self._asked.add(intent)
        if intent > self._intent:
            self._intent = intent
            for level, event in self._reached.items():
                if level <= intent:
                    event.set()

    async def reached(self, level: Intent) -> Intent:
        """Waits for an intent of at least level and returns it."""
        await self._reached[level].wait()
        return self._intent

    async def unless(self, level: Intent, work: Coroutine[Any, Any, T]) -> T:
        """Result of work; when level is reached first, work is cancelled and Interrupted raised."""
        running = asyncio.ensure_future(work)
        watcher = asyncio.ensure_future(self.reached(level))
        try:
            await asyncio.wait((running, watcher), return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                return running.result()
            raise Interrupted(self._intent)
        finally:
            for task in (running, watcher):
                task.cancel()
            await asyncio.gather(running, watcher, return_exceptions=True)
