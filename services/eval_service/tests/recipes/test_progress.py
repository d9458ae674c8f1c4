"""A step that hangs is ended once, and has time to end."""

import threading
from types import SimpleNamespace

import pytest

from eval_service.recipes.progress import Progress, Stalled
from workerkit.child.stopping import StopRequest

from .conftest import Recorder

LIMIT = 10.0
BEATS = 20


class Clock:
    """Says the time that it is told; counts who asks beside the main thread, which is once each beat."""

    def __init__(self) -> None:
        self.now = 0.0
        self._beats = threading.Semaphore(0)

    def __call__(self) -> float:
        if threading.current_thread() is not threading.main_thread():
            self._beats.release()
        return self.now

    def let_beat(self) -> None:
        """Waits until BEATS more have come."""
        while self._beats.acquire(blocking=False):
            pass
        for _ in range(BEATS):
            assert self._beats.acquire(timeout=30)


def test_what_hangs_is_told_to_end_once_for_each_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workerkit.child.heartbeat.BEAT_SECONDS", 0.001)
    clock, events = Clock(), Recorder()
    monkeypatch.setattr("eval_service.recipes.progress.time", SimpleNamespace(monotonic=clock))
    with Progress(events, StopRequest(), 1).silent_step(LIMIT, "it hangs"):
        for end in (LIMIT, 2 * LIMIT):
            with pytest.raises(Stalled, match="it hangs"):
                clock.now = end
                threading.Event().wait(30)
            silent = len(events.events)
            clock.let_beat()
            assert len(events.events) == silent, "what does not end gives no signs of life"
