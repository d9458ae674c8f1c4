"""How far an evaluation is, and the places where it ends when somebody wants that."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

from workerkit.child.errors import RecipeError
from workerkit.child.events import EventWriter
from workerkit.child.heartbeat import beating
from workerkit.child.stopping import StopRequest

SCORED, COMPARED, WHOLE = 80, 95, 100  # percent


class Stopping(Exception):
    """The worker asked for an end."""


class Stalled(RecipeError):
    """A step hangs."""

    reason = "EVALUATION_STALLED"


class Progress:
    """How far checkpoints are, in percent: first each is scored, then the answers of each are compared.

    What is left then is the report and its way to where it is kept.
    """

    def __init__(self, events: EventWriter, stop: StopRequest, checkpoints: int) -> None:
        self._events, self._stop, self._checkpoints = events, stop, max(1, checkpoints)
        self._scored = self._compared = 0
        self._share = 0.0
        self._lock = threading.Lock()
        self._moved = 0.0  # when heed() was called last, by a clock that nobody sets

    def start(self) -> None:
        """Scoring begins."""
        self._events.started(step=0, total_steps=WHOLE)

    def tell(self, share: float) -> None:
        """A share of the checkpoint that is being scored is done. Raises Stopping."""
        self._share = share
        self._tell(always=False)
        self.heed()

    def next(self) -> None:
        """A checkpoint is scored. Raises Stopping."""
        self._scored, self._share = self._scored + 1, 0.0
        self._tell(always=True)
        self.heed()

    def compared(self) -> None:
        """The answers of a checkpoint are compared. Raises Stopping."""
        self._compared += 1
        self._tell(always=True)
        self.heed()

    def heed(self) -> None:
        """The work goes on. Raises Stopping when an end is asked for."""
        self._moved = time.monotonic()
        if self._stop.requested:
            raise Stopping

    @contextlib.contextmanager
    def silent_step(self, seconds: float = math.inf, stalled: str = "") -> Iterator[None]:
        """While it lasts the progress is repeated, so that a long step of which nothing is told is none that hangs.

        When heed() is not called for so many seconds it does hang: Stalled with that message is raised in it, and what
        does not end by that gives no more signs of life; it is raised again after the same time, not sooner, so that
        there is time to end. With a limit only in the main thread.
        """
        self._moved = raised = time.monotonic()
        main = threading.get_ident()

        def beat() -> None:
            nonlocal raised
            now = time.monotonic()
            if now - self._moved < seconds:
                self._tell(always=True)
            elif now - raised >= seconds:
                raised = now
                signal.pthread_kill(main, signal.SIGUSR1)

        with _raising(Stalled(stalled)) if seconds < math.inf else contextlib.nullcontext(), beating(beat):
            yield

    def _tell(self, *, always: bool) -> None:
        with self._lock:  # a repetition of what was told may not come after what is new
            done = self._scored + self._share
            percent = (SCORED * done + (COMPARED - SCORED) * self._compared) / self._checkpoints
            self._events.progress(step=int(percent), total_steps=WHOLE, epoch=done, always=always)


@contextlib.contextmanager
def _raising(error: Exception) -> Iterator[None]:
    """Within it SIGUSR1 raises an error, also where the main thread waits for a lock or reads."""

    def fail(*_: object) -> NoReturn:
        raise error

    before = signal.signal(signal.SIGUSR1, fail)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)
