"""Streams as a client sees them: over gRPC, with every background duty running, on both databases."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from servicekit import subjects
from servicekit.errors import InvalidArgument, NotFound
from services.task_service.tests.harness import Attempt, Client, Service
from task_service.streams.archives import log_key
from tests.support.waiting import eventually
from tunesmith.events.v1.fact_pb2 import LogBatch
from tunesmith.task.v1 import task_pb2
from tunesmith.task.v1 import task_service_pb2 as pb


@pytest.fixture
async def running(service: Service) -> AsyncIterator[Service]:
    async with service.running():
        yield service


async def begin(service: Service, client: Client) -> Attempt:
    """A new task that a worker has claimed."""
    task = await client.create()

    async def is_queued() -> bool:
        return await service.queued(task) == 1

    await eventually(is_queued)
    return await service.worker().claim(task.id)


async def write(service: Service, attempt: Attempt, *texts: str, final: bool = False) -> None:
    batch = LogBatch(task_id=attempt.task_id, attempt=attempt.number, final=final)
    for text in texts:
        batch.lines.add(text=text).time.GetCurrentTime()
    await service.bus.publish(subjects.log(attempt.task_id), batch.SerializeToString())


async def tail(client: Client, task_id: str) -> list[str]:
    request = pb.TailLogRequest(task_id=task_id)
    return [line.text async for response in client.stub.TailLog(request) for line in response.lines]


async def watch(client: Client, task_id: str, cursor: str = "") -> list[tuple[str, str]]:
    request = pb.WatchTaskRequest(task_id=task_id, cursor=cursor)
    return [(response.event.type, response.cursor) async for response in client.stub.WatchTask(request)]


async def consumers(service: Service, stream: str) -> int:
    return int((await service.bus._js.stream_info(stream)).state.consumer_count)


async def test_the_whole_life_of_a_task(running: Service, alice: Client) -> None:
    attempt = await begin(running, alice)
    task_id = attempt.task_id
    watching, tailing = asyncio.ensure_future(watch(alice, task_id)), asyncio.ensure_future(tail(alice, task_id))
    await write(running, attempt, "loading", "training")
    await attempt.say(metrics=attempt.metrics(1, loss=2.0))
    await attempt.say(metrics=attempt.metrics(2, loss=1.0))
    await attempt.say(checkpoint_saved=attempt.checkpoint(2))
    await write(running, attempt, "done", final=True)
    await attempt.say(completed=attempt.completed())
    async with asyncio.timeout(20):
        events, lines = await watching, await tailing
    assert lines == ["loading", "training", "done"]
    types = [event_type for event_type, _ in events]
    assert (types[0], types[-1]) == ("task.snapshot", "task.completed")
    assert {"metrics.logged", "checkpoint.saved"} <= set(types)
    assert await watch(alice, task_id, events[0][1]) == events[1:]
    assert await watch(alice, task_id, events[-1][1]) == []

    metrics = await alice.stub.ListMetrics(pb.ListMetricsRequest(task_id=task_id))
    assert [(item.name, list(item.steps), list(item.values)) for item in metrics.series] == [("loss", [1, 2], [2, 1])]
    await eventually(lambda: running.objects.stat(log_key(task_id)))
    log = await alice.stub.ReadLog(pb.ReadLogRequest(task_id=task_id, tail=2))
    assert ([line.text for line in log.lines], log.total_lines) == (["training", "done"], 3)
    assert await tail(alice, task_id) == lines

    await alice.delete(task_id)
    with pytest.raises(NotFound):
        await tail(alice, task_id)

    async def nothing_left() -> bool:
        stored = [info async for info in running.objects.list(f"tasks/{task_id}/")]
        return not stored and await running.bus.last_message(subjects.LOGS, subjects.log(task_id)) is None

    await eventually(nothing_left)


async def test_a_client_that_leaves_frees_its_consumers(running: Service, alice: Client) -> None:
    attempt = await begin(running, alice)
    before = [await consumers(running, stream) for stream in (subjects.EVENTS, subjects.LOGS)]
    calls = [
        *(alice.stub.WatchTask(pb.WatchTaskRequest(task_id=attempt.task_id)) for _ in range(3)),
        *(alice.stub.TailLog(pb.TailLogRequest(task_id=attempt.task_id)) for _ in range(3)),
    ]
    await write(running, attempt, "line")
    for call in calls:
        await call.read()

    async def counts(extra: int) -> bool:
        return [await consumers(running, stream) for stream in (subjects.EVENTS, subjects.LOGS)] == [
            count + extra for count in before
        ]

    await eventually(lambda: counts(3))
    for call in calls:
        call.cancel()
    await eventually(lambda: counts(0))


async def test_errors_reach_the_caller_as_they_are(running: Service, alice: Client, bob: Client) -> None:
    task = await alice.create()
    for call in (watch, tail):
        with pytest.raises(NotFound):
            await call(bob, task.id)
    with pytest.raises(NotFound):
        await bob.stub.ReadLog(pb.ReadLogRequest(task_id=task.id))
    with pytest.raises(NotFound):
        await bob.stub.ListMetrics(pb.ListMetricsRequest(task_id=task.id))
    with pytest.raises(InvalidArgument, match="cursor"):
        await watch(alice, task.id, "garbage")


async def test_watching_goes_on_through_stop_and_resume(running: Service, alice: Client) -> None:
    attempt = await begin(running, alice)
    events = alice.stub.WatchTask(pb.WatchTaskRequest(task_id=attempt.task_id))
    first = await events.read()
    events.cancel()
    await alice.stop(attempt.task_id)
    await attempt.say(checkpoint_saved=attempt.checkpoint(5))
    await attempt.say(stopped={"checkpoint_step": 5})
    await running.state(alice, attempt.task_id, task_pb2.STATE_STOPPED)
    await alice.resume(attempt.task_id)
    watching = asyncio.ensure_future(watch(alice, attempt.task_id, first.cursor))
    await running.state(alice, attempt.task_id, task_pb2.STATE_PENDING)
    await alice.stop(attempt.task_id)
    async with asyncio.timeout(20):
        types = [event_type for event_type, _ in await watching if event_type.startswith("task.")]
    # The start may be told again after the snapshot that showed it.
    assert types[-4:] == ["task.stopping", "task.stopped", "task.resumed", "task.stopped"]
    assert types[:-4] in ([], ["task.started"])
