"""Signs of life of a child while a step of it is silent."""

import threading

import pytest

from workerkit.child import heartbeat


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.001)


def heartbeats() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "heartbeat"]


def test_it_beats_while_a_step_lasts_and_never_after() -> None:
    beats = threading.Semaphore(0)
    with pytest.raises(ValueError, match="broken"), heartbeat.beating(beats.release):
        for _ in range(3):
            assert beats.acquire(timeout=30)
        raise ValueError("broken")
    assert not heartbeats()


def test_it_ends_quietly_when_nobody_listens_any_more() -> None:
    asked = threading.Event()

    def broken_pipe() -> None:
        asked.set()
        raise BrokenPipeError

    with heartbeat.beating(broken_pipe):
        assert asked.wait(timeout=30)
    assert not heartbeats()
