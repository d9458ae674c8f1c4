"""How far an export is, told in percent, and the place where it ends when somebody wants that."""

import time
from collections.abc import Callable

from workerkit.child.events import EventWriter
from workerkit.child.stopping import StopRequest

PERCENT = 100
REPEAT_SECONDS = 10.0  # a child that is silent for long is taken for one that hangs


class ExportStopped(Exception):
    """Somebody asked for an end."""


class Progress:
    """The progress of a whole export; each part of it covers a range of shares."""

    def __init__(self, events: EventWriter, stop: StopRequest, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._events = events
        self._stop = stop
        self._clock = clock
        self._told = clock()
        self._phase = ""
        self._percent = 0
        events.started(step=0, total_steps=PERCENT)

    def part(self, first: float, last: float) -> "Part":
        """A part from one share of the whole to another, 0 to 1."""
        return Part(self, first, last)

    def tell(self, share: float, phase: str) -> None:
        """The export has come so far; said again every few seconds while that stays so. Raises ExportStopped."""
        if self._stop.requested:
            raise ExportStopped
        entered = bool(phase) and phase != self._phase
        if entered:
            self._phase = phase
            self._events.phase(phase)
        percent = min(PERCENT, int(share * PERCENT))
        now = self._clock()
        overdue = now - self._told >= REPEAT_SECONDS
        if percent > self._percent or overdue:
            self._percent, self._told = max(percent, self._percent), now
            self._events.progress(step=self._percent, total_steps=PERCENT, epoch=0.0, always=entered or overdue)

    def is_stopped(self) -> bool:
        """Whether somebody has asked for an end."""
        return self._stop.requested


class Part:
    """One part of an export, which counts from 0 to 1 for itself."""

    def __init__(self, whole: Progress, first: float, last: float) -> None:
        self._whole = whole
        self._first = first
        self._last = last

    def __call__(self, share: float, phase: str = "") -> None:
        """The part has come so far. Raises ExportStopped."""
        self._whole.tell(self._first + (self._last - self._first) * share, phase)
