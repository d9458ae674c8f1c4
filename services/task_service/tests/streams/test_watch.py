"""Watching a task: nothing is lost between the snapshot and the events, and the stream ends when the task has."""

import asyncio
import gc
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from servicekit import subjects
from servicekit.errors import InvalidArgument, NotFound
from services.task_service.tests.streams.world import OWNER, STRANGER, World
from task_service.database.models import TaskRow
from task_service.domain.lifecycle import State
from tests.support.waiting import eventually
from tunesmith.task.v1.event_pb2 import TaskEvent
from tunesmith.task.v1.task_pb2 import Progress, Task

Events = AsyncGenerator[tuple[TaskEvent, str], None]


async def following(events: Events, count: int) -> list[TaskEvent]:
    async with asyncio.timeout(10):
        return [(await anext(events))[0] for _ in range(count)]


async def remaining(events: Events) -> list[str]:
    async with asyncio.timeout(10), aclosing(events):
        return [event.type async for event, _ in events]


async def progress(world: World, task: TaskRow, step: int) -> None:
    await world.announce(task.id, "task.progressed", progress=Progress(step=step))


async def end(world: World, task: TaskRow, state: State = State.COMPLETED, run: int = 1) -> None:
    """As the life cycle does it: the row first, then the event."""
    await world.set_task(task, state=state, run=run)
    await world.announce(task.id, f"task.{state.name.lower()}", task=Task(id=task.id, run=run))


async def test_a_snapshot_then_what_happens_then_the_end(world: World) -> None:
    task = await world.create_task()
    await progress(world, task, 1)
    events = world.watcher().watch(OWNER, task.id)
    (snapshot,) = await following(events, 1)
    assert (snapshot.type, snapshot.task.id, snapshot.owner) == ("task.snapshot", task.id, OWNER.user)
    await world.announce("o" * 26, "task.progressed", progress=Progress(step=7))
    await progress(world, task, 2)
    await world.announce(task.id, "checkpoint.saved")
    await end(world, task)
    await progress(world, task, 99)
    assert await remaining(events) == ["task.progressed", "checkpoint.saved", "task.completed"]
    assert await world.consumer_count(subjects.EVENTS) == 0


@pytest.mark.parametrize("state", [State.COMPLETED, State.FAILED, State.STOPPED])
async def test_of_an_ended_task_there_is_the_snapshot_alone(world: World, state: State) -> None:
    task = await world.create_task()
    await end(world, task, state)
    assert await remaining(world.watcher().watch(OWNER, task.id)) == ["task.snapshot"]


async def test_every_cursor_goes_on_after_it(world: World) -> None:
    task = await world.create_task()
    events = world.watcher().watch(OWNER, task.id)
    cursors = [(await anext(events))[1]]
    for step in range(5):
        await progress(world, task, step)
        await world.announce("o" * 26, "task.progressed", progress=Progress(step=7))
    await end(world, task)
    expected = ["task.progressed"] * 5 + ["task.completed"]
    async for _, cursor in events:
        cursors.append(cursor)
    assert len(cursors) == 7
    for seen, cursor in enumerate(cursors):
        assert await remaining(world.watcher().watch(OWNER, task.id, cursor)) == expected[seen:]


async def test_it_goes_on_when_the_task_was_resumed(world: World) -> None:
    task = await world.create_task()
    events = world.watcher().watch(OWNER, task.id)
    (_, cursor) = await anext(events)
    await end(world, task, State.STOPPED)
    await world.set_task(task, state=State.PENDING, run=2)
    await world.announce(task.id, "task.resumed", task=Task(run=2))
    assert [event.type for event in await following(events, 2)] == ["task.stopped", "task.resumed"]
    await end(world, task, State.COMPLETED, run=2)
    assert await remaining(events) == ["task.completed"]
    expected = ["task.stopped", "task.resumed", "task.completed"]
    assert await remaining(world.watcher().watch(OWNER, task.id, cursor)) == expected


async def test_deleting_ends_it(world: World) -> None:
    task = await world.create_task()
    events = world.watcher().watch(OWNER, task.id)
    await following(events, 1)
    await world.set_task(task, state=State.STOPPED, delete_time=1)
    await world.announce(task.id, "task.stopped", task=Task(run=1))
    await world.announce(task.id, "task.deleted", task=Task(run=1))
    assert await remaining(events) == ["task.stopped", "task.deleted"]


@pytest.mark.parametrize("cursor", ["x", "1-2", "-1", "1.0", " 1", "9" * 20])
async def test_a_bad_cursor_is_refused(world: World, cursor: str) -> None:
    task = await world.create_task()
    with pytest.raises(InvalidArgument, match="cursor"):
        await remaining(world.watcher().watch(OWNER, task.id, cursor))


async def test_others_see_no_task(world: World) -> None:
    task = await world.create_task()
    for principal, task_id in [(STRANGER, task.id), (OWNER, "u" * 26)]:
        with pytest.raises(NotFound):
            await remaining(world.watcher().watch(principal, task_id))


async def test_a_cursor_from_before_the_stream_begins_with_a_snapshot(world: World) -> None:
    task = await world.create_task()
    first = await world.announce(task.id, "task.created")
    for step in range(5):
        await progress(world, task, step)
    await world.bus.purge(subjects.EVENTS, subjects.events_of(task.id))
    events = world.watcher().watch(OWNER, task.id, str(first))
    await end(world, task)
    assert await remaining(events) == ["task.snapshot"]
    # A later sequence than any there is comes from a stream that was lost.
    assert await remaining(world.watcher().watch(OWNER, task.id, "1000000")) == ["task.snapshot"]


async def test_a_watcher_that_the_stream_left_behind_gets_a_snapshot(world: World) -> None:
    task = await world.create_task()
    events = world.watcher().watch(OWNER, task.id)
    await following(events, 1)
    await world.bus.publish(subjects.event("task.progressed", "o" * 26), b"")
    await world.set_task(task, state=State.COMPLETED)
    assert await remaining(events) == ["task.snapshot"]


async def test_a_watcher_of_a_lost_stream_goes_on_in_the_new_one(world: World) -> None:
    task = await world.create_task()
    for step in range(5):
        await progress(world, task, step)
    events = world.watcher().watch(OWNER, task.id)
    _, cursor = await anext(events)
    await world.lose_stream(subjects.EVENTS)
    assert [event.type for event in await following(events, 1)] == ["task.snapshot"]
    await progress(world, task, 6)
    assert [event.progress.step for event in await following(events, 1)] == [6]
    await end(world, task)
    assert await remaining(events) == ["task.completed"]
    assert await remaining(world.watcher().watch(OWNER, task.id, cursor)) == ["task.snapshot"]


async def test_nothing_is_lost_whenever_watching_begins(world: World) -> None:
    task = await world.create_task()
    watching: list[asyncio.Future[list[int]]] = []

    async def watch() -> list[int]:
        events = world.watcher().watch(OWNER, task.id)
        return [event.task.progress.step or event.progress.step async for event, _ in events]

    for step in range(1, 200):
        await world.set_task(task, step=step)
        if step % 20 == 0:
            watching.append(asyncio.ensure_future(watch()))
        await progress(world, task, step)
    await end(world, task)
    async with asyncio.timeout(20):
        seen = await asyncio.gather(*watching)
    for snapshot, *rest in seen:
        if rest:
            assert rest == [*range(rest[0], 200), 0]
            assert rest[0] <= snapshot + 1
        else:
            assert snapshot == 199


async def test_it_survives_restarts_of_the_broker(world: World) -> None:
    task = await world.create_task()
    steps: list[int] = []

    async def watch() -> None:
        async for event, _ in world.watcher().watch(OWNER, task.id):
            steps.append(event.progress.step)

    watching = asyncio.ensure_future(watch())
    await eventually(lambda: steps == [0])
    for restart in range(3):
        await progress(world, task, 10 * restart + 1)
        await world.restart_broker()
        await progress(world, task, 10 * restart + 2)
    await end(world, task)
    async with asyncio.timeout(20):
        await watching
    assert steps == [0, 1, 2, 11, 12, 21, 22, 0]


async def test_a_slow_watcher_holds_little_in_memory(world: World) -> None:
    task = await world.create_task()
    watching = [world.watcher().watch(OWNER, task.id) for _ in range(4)]
    for events in watching:
        await following(events, 1)
        waiting = asyncio.ensure_future(anext(events))
        await progress(world, task, 0)
        await waiting
    for step in range(2000):
        await progress(world, task, step)
    gc.collect()
    held = sum(1 for item in gc.get_objects() if type(item).__name__ == "Message")
    assert held < 4 * 600
    for events in watching:
        assert [event.progress.step for event in await following(events, 2000)][-1] >= 1990
        await events.aclose()
    assert await world.consumer_count(subjects.EVENTS) == 0


async def test_cancelled_watchers_free_their_consumers(world: World) -> None:
    task = await world.create_task()
    watching = [asyncio.ensure_future(remaining(world.watcher().watch(OWNER, task.id))) for _ in range(5)]

    async def all_follow() -> bool:
        return await world.consumer_count(subjects.EVENTS) == 5

    await eventually(all_follow)
    for watcher in watching:
        watcher.cancel()
    await asyncio.wait(watching)
    assert await world.consumer_count(subjects.EVENTS) == 0
