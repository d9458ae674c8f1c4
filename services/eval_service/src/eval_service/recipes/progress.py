"""How far an evaluation is, and the places where it ends when somebody wants that."""

import contextlib
from collections.abc import Iterator

from workerkit.child.events import EventWriter
from workerkit.child.heartbeat import beating
from workerkit.child.stopping import StopRequest


class Stopping(Exception):
    """The worker asked for an end."""


class Progress:
    """Counts samples of checkpoints: so many checkpoints are scored, and a share of the next one."""

    def __init__(self, events: EventWriter, stop: StopRequest, checkpoints: int) -> None:
        self._events, self._stop, self._checkpoints = events, stop, checkpoints
        self._samples = self._scored = 0
        self._share = 0.0

    def start(self, samples: int) -> None:
        """Scoring begins, on so many samples."""
        self._samples = samples
        self._events.started(step=0, total_steps=self._checkpoints * samples)

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

    def heed(self) -> None:
        """Raises Stopping when that is asked for."""
        if self._stop.requested:
            raise Stopping

    @contextlib.contextmanager
    def silent_step(self) -> Iterator[None]:
        """While it lasts the progress is repeated, so that a long step of which nothing is told is none that hangs."""
        with beating(lambda: self._tell(always=True)):
            yield

    def _tell(self, *, always: bool) -> None:
        done, samples = self._scored + self._share, self._samples
        total = self._checkpoints * samples
        self._events.progress(step=int(done * samples), total_steps=total, epoch=done, always=always)
