"""Watching all tasks: each caller sees the own ones only, and nothing is lost between snapshots and events."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from servicekit import subjects
from servicekit.errors import InvalidArgument
from servicekit.identity import Principal, Role
from services.task_service.tests.streams.world import OWNER, STRANGER, World
from task_service.domain.lifecycle import State
from task_service.streams.watch_all import AllTasksWatcher
from tests.support.waiting import eventually
from tunesmith.task.v1.event_pb2 import TaskEvent
from tunesmith.task.v1.quota_service_pb2 import Quota
from tunesmith.task.v1.task_pb2 import Progress, Task

ADMIN = Principal("root", Role.ADMIN)
Events = AsyncGenerator[tuple[TaskEvent, str], None]


def watcher(world: World) -> AllTasksWatcher:
    return AllTasksWatcher(world.bus, world.database, idle_seconds=0.2)


async def following(events: Events, count: int) -> list[tuple[str, str]]:
    async with asyncio.timeout(10):
        return [((event := (await anext(events))[0]).task_id[:1], event.type) for _ in range(count)]


async def progress(world: World, task_id: str, owner: Principal = OWNER) -> None:
    await world.announce(task_id, "task.progressed", progress=Progress(step=1), owner=owner.user)


async def test_snapshots_of_unfinished_tasks_then_the_callers_events_alone(world: World) -> None:
    await world.create_task("a" * 26)
    await world.create_task("b" * 26, owner=STRANGER.user)
    await world.create_task("c" * 26, state=State.COMPLETED)
    await world.create_task("d" * 26, state=State.PENDING)
    async with aclosing(watcher(world).watch(OWNER)) as events:
        assert await following(events, 2) == [("a", "task.snapshot"), ("d", "task.snapshot")]
        await progress(world, "b" * 26, STRANGER)
        await progress(world, "a" * 26)
        await world.announce("e" * 26, "task.created", task=Task(id="e" * 26), owner=OWNER.user)
        await world.announce("d" * 26, "task.stopped", task=Task(id="d" * 26), owner=OWNER.user)
        await progress(world, "e" * 26)
        seen = await following(events, 4)
    assert seen == [("a", "task.progressed"), ("e", "task.created"), ("d", "task.stopped"), ("e", "task.progressed")]

    async def let_go() -> bool:
        return await world.consumer_count(subjects.EVENTS) == 0

    await eventually(let_go)


async def test_an_administrator_sees_everybodys_tasks_and_a_user_the_own_quota(world: World) -> None:
    await world.create_task("a" * 26)
    await world.create_task("b" * 26, owner=STRANGER.user)
    async with aclosing(watcher(world).watch(ADMIN)) as all_events, aclosing(watcher(world).watch(STRANGER)) as own:
        assert [task for task, _ in await following(all_events, 2)] == ["a", "b"]
        assert [task for task, _ in await following(own, 1)] == ["b"]
        await world.announce("u", "quota.low", quota=Quota(user=OWNER.user), owner=OWNER.user)
        await world.announce("u", "quota.low", quota=Quota(user=STRANGER.user), owner=STRANGER.user)
        await progress(world, "b" * 26, STRANGER)
        assert await following(all_events, 3) == [("u", "quota.low"), ("u", "quota.low"), ("b", "task.progressed")]
        assert await following(own, 2) == [("u", "quota.low"), ("b", "task.progressed")]


async def test_it_goes_on_after_a_cursor_without_snapshots(world: World) -> None:
    await world.create_task("a" * 26)
    events = watcher(world).watch(OWNER)
    async with aclosing(events), asyncio.timeout(10):
        await anext(events)
        await progress(world, "a" * 26)
        _, cursor = await anext(events)
    await progress(world, "b" * 26, STRANGER)
    await world.announce("a" * 26, "checkpoint.saved", owner=OWNER.user)
    async with aclosing(watcher(world).watch(OWNER, cursor)) as resumed:
        assert await following(resumed, 1) == [("a", "checkpoint.saved")]


async def test_after_a_lost_stream_it_starts_again_with_snapshots(world: World) -> None:
    await world.create_task("a" * 26)
    for _ in range(3):
        await progress(world, "a" * 26)
    async with aclosing(watcher(world).watch(OWNER)) as events:
        await following(events, 1)
        await world.lose_stream(subjects.EVENTS)
        assert await following(events, 1) == [("a", "task.snapshot")]
        await progress(world, "a" * 26)
        assert await following(events, 1) == [("a", "task.progressed")]


async def test_a_cursor_that_is_none_is_refused(world: World) -> None:
    with pytest.raises(InvalidArgument):
        await anext(watcher(world).watch(OWNER, "yesterday"))
