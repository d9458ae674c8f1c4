"""The lease by a clock of the test's own."""

import asyncio
from collections.abc import Callable

import pytest

from servicekit.errors import NotFound, TunesmithError, Unavailable
from tests.support.waiting import eventually
from tunesmith.task.v1 import task_service_pb2 as task_service
from workerkit.intent import Control, Intent, Interrupted
from workerkit.lease import Lease


class Peer:
    """Answers heartbeats and stands for the queue's message too."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.directive = task_service.DIRECTIVE_CONTINUE
        self.error: TunesmithError | None = None
        self.during: Callable[[], None] = lambda: None
        self.requests: list[task_service.HeartbeatTaskRequest] = []
        self.extended = 0
        self.control = Control()
        self.lease = Lease(
            task_id="t",
            attempt=3,
            worker="w",
            seconds=9.0,
            control=self.control,
            heartbeat=self.heartbeat,
            message=self,
            extend_every=0.01,
            clock=lambda: self.now,
        )

    async def heartbeat(
        self, request: task_service.HeartbeatTaskRequest, seconds: float
    ) -> task_service.HeartbeatTaskResponse:
        self.requests.append(request)
        self.during()
        if self.error is not None:
            raise self.error
        return task_service.HeartbeatTaskResponse(directive=self.directive)

    async def in_progress(self) -> None:
        self.extended += 1


@pytest.fixture
def peer() -> Peer:
    return Peer()


async def test_a_fresh_lease_asks_nobody(peer: Peer) -> None:
    peer.now += 8.9
    await peer.lease.ensure()
    assert not peer.requests


async def test_after_a_pause_it_asks_before_anything_else(peer: Peer) -> None:
    peer.now += 9.0
    await peer.lease.ensure()
    assert [(request.task_id, request.attempt, request.worker) for request in peer.requests] == [("t", 3, "w")]
    assert not peer.lease.doubtful


async def test_when_another_has_the_task_everything_is_refused(peer: Peer) -> None:
    peer.now += 60
    peer.directive = task_service.DIRECTIVE_ABANDON
    for _ in range(2):
        with pytest.raises(Interrupted):
            await peer.lease.ensure()
    assert len(peer.requests) == 1
    assert peer.control.intent is Intent.ABANDON


async def test_a_task_that_is_gone_is_abandoned(peer: Peer) -> None:
    peer.error = NotFound("no such task")
    await peer.lease.renew()
    assert peer.control.intent is Intent.ABANDON


async def test_an_answer_counts_from_when_it_was_asked_for(peer: Peer) -> None:
    """A worker that is paused while the answer is on its way cannot rely on it."""

    def pause() -> None:
        peer.now += 20

    peer.during = pause
    await peer.lease.renew()
    assert peer.lease.doubtful


async def test_it_waits_for_the_task_service_and_then_goes_on(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workerkit.lease.RETRY_SECONDS", 0.01)
    peer.now += 60
    peer.error = Unavailable("down")
    waiting = asyncio.create_task(peer.lease.ensure())
    await eventually(lambda: len(peer.requests) >= 3)
    assert not waiting.done()
    peer.error = None
    await asyncio.wait_for(waiting, 5)
    assert peer.control.intent is Intent.GO_ON


async def test_it_holds_until_the_attempt_is_lost(peer: Peer) -> None:
    holding = asyncio.create_task(peer.lease.hold())
    await eventually(lambda: peer.extended >= 3)
    peer.error = Unavailable("down")
    extended = peer.extended
    await eventually(lambda: peer.extended > extended + 2)
    peer.error, peer.directive = None, task_service.DIRECTIVE_STOP_AND_SAVE
    await eventually(lambda: peer.control.intent is Intent.STOP_AND_SAVE)
    assert peer.control.stop_wanted
    peer.directive = task_service.DIRECTIVE_ABANDON
    await asyncio.wait_for(holding, 5)


async def test_a_nudge_is_answered_at_once() -> None:
    peer = Peer()
    peer.lease._interval = 3600
    holding = asyncio.create_task(peer.lease.hold())
    for count in (1, 2):
        peer.lease.nudge()
        await eventually(lambda wanted=count: len(peer.requests) == wanted)
    holding.cancel()
    await asyncio.gather(holding, return_exceptions=True)


async def test_intents_only_become_stronger() -> None:
    control = Control()
    control.ask(Intent.DISCARD)
    control.ask(Intent.RELEASE)
    assert control.intent is Intent.DISCARD
    assert await control.reached(Intent.STOP_AND_SAVE) is Intent.DISCARD

    async def endless() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Interrupted):
        await control.unless(Intent.DISCARD, endless())
    work = asyncio.create_task(control.unless(Intent.ABANDON, endless()))
    await asyncio.sleep(0)
    control.ask(Intent.ABANDON)
    with pytest.raises(Interrupted):
        await work
