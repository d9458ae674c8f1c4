"""Storing logs: once the last line is there, whatever dies on the way, and without losing what comes late."""

import asyncio
import signal
from pathlib import Path

import pytest

from servicekit import subjects
from services.task_service.tests.streams.world import OWNER, World, run_until_killed
from task_service.domain.lifecycle import State
from task_service.streams.archives import log_key
from task_service.streams.log_archiver import LogArchiver
from tests.support.waiting import eventually

STEPS = ["objects.put_file", "archives.store", "objects.stat", "bus.purge", "archives.purged"]


async def text_of(world: World, task_id: str) -> list[str]:
    """The stored lines without time."""
    stored = (await world.objects.get_bytes(log_key(task_id))).decode()
    assert stored.endswith("\n")
    return [line.split(" ", 1)[1] for line in stored.splitlines()]


async def read_texts(world: World, task_id: str) -> list[str]:
    lines, total = await world.reader().read(OWNER, task_id)
    assert total == len(lines)
    return [line.text for line in lines]


async def settle(archiver: LogArchiver) -> None:
    """Archives and purges until nothing is left to do."""
    while await archiver.archive_due() + await archiver.purge_due():
        pass


async def test_a_running_task_is_left_alone(world: World) -> None:
    task = await world.create_task()
    await world.log(task.id, ["one"], final=True)
    assert await world.archiver().archive_due() == 0
    assert await world.objects.stat(log_key(task.id)) is None


async def test_it_waits_for_the_last_batch_for_some_time(world: World) -> None:
    ended = await world.create_task("a" * 26, state=State.FAILED, attempt=2)
    died = await world.create_task("b" * 26, state=State.FAILED, attempt=2)
    for task in (ended, died):
        await world.log(task.id, ["first"], attempt=1, final=True)
        await world.log(task.id, ["second"], attempt=2)
    archiver = world.archiver(final_wait=1.0)
    assert await archiver.archive_due() == 0
    await world.log(ended.id, ["last"], attempt=2, final=True)
    assert await archiver.archive_due() == 1
    assert await text_of(world, ended.id) == ["1 first", "2 second", "2 last"]
    assert await world.objects.stat(log_key(died.id)) is None
    await eventually(archiver.archive_due)
    assert await text_of(world, died.id) == ["1 first", "2 second"]


async def test_a_task_that_never_ran_has_nothing_to_store(world: World) -> None:
    task = await world.create_task(state=State.STOPPED, attempt=0)
    archiver = world.archiver()
    assert (await archiver.archive_due(), await archiver.purge_due()) == (0, 0)
    assert await read_texts(world, task.id) == []


async def test_a_task_that_wrote_nothing_is_settled(world: World) -> None:
    task = await world.create_task(state=State.STOPPED)
    archiver = world.archiver()
    assert await archiver.archive_due() == 1
    assert (await archiver.archive_due(), await archiver.purge_due()) == (0, 0)
    assert await read_texts(world, task.id) == []


async def test_stored_lines_stay_in_the_stream_for_a_while(world: World) -> None:
    task = await world.create_task(state=State.COMPLETED)
    await world.log(task.id, ["one"], final=True)
    archiver = world.archiver(purge_after=0.3)
    assert (await archiver.archive_due(), await archiver.purge_due()) == (1, 0)
    assert await world.message_count(subjects.LOGS, subjects.log(task.id)) == 1
    await eventually(archiver.purge_due)
    assert await world.message_count(subjects.LOGS, subjects.log(task.id)) == 0
    assert await read_texts(world, task.id) == ["one"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_dying_at_any_step_loses_and_repeats_nothing(world: World, tmp_path: Path, step: str, when: str) -> None:
    task = await world.create_task(state=State.STOPPED)
    expected = [f"1 {number}" for number in range(50)]
    for number in range(50):
        await world.log(task.id, [str(number)], final=number == 49)
    await settle(world.archiver())
    # The second run: what it adds is stored by an archiver that dies.
    await world.set_task(task, state=State.COMPLETED, attempt=2)
    await world.log(task.id, ["again"], attempt=2, final=True)
    assert await run_until_killed(world, tmp_path, "archiver", step, when) == -signal.SIGKILL
    assert await read_texts(world, task.id) == [*(line[2:] for line in expected), "again"]
    await settle(world.archiver())
    assert await text_of(world, task.id) == [*expected, "2 again"]
    assert await read_texts(world, task.id) == [*(line[2:] for line in expected), "again"]
    assert await world.message_count(subjects.LOGS, subjects.log(task.id)) == 0


async def test_a_resumed_task_appends_to_its_stored_log(world: World) -> None:
    task = await world.create_task(state=State.STOPPED)
    await world.log(task.id, ["one", "two"], final=True)
    await settle(world.archiver())
    await world.set_task(task, state=State.PENDING, run=2)
    assert await read_texts(world, task.id) == ["one", "two"]
    await world.set_task(task, state=State.RUNNING, attempt=2)
    await world.log(task.id, ["three"], attempt=2)
    await world.log(task.id, ["of the old attempt"], attempt=1)
    reader = world.reader()
    lines, total = await reader.read(OWNER, task.id, tail=2)
    assert ([line.text for line in lines], total) == (["two", "three"], 3)
    assert await world.archiver().archive_due() == 0
    await world.log(task.id, ["four"], attempt=2, final=True)
    await world.set_task(task, state=State.COMPLETED)
    await settle(world.archiver())
    assert await text_of(world, task.id) == ["1 one", "1 two", "2 three", "2 four"]
    for tail, offset, expected in [
        (1, 0, ["four"]),
        (3, 0, ["two", "three", "four"]),
        (0, 1, ["two", "three", "four"]),
    ]:
        lines, total = await reader.read(OWNER, task.id, tail=tail, offset=offset)
        assert ([line.text for line in lines], total) == (expected, 4)


async def test_lines_that_come_after_storing_are_stored_too(world: World) -> None:
    task = await world.create_task(state=State.COMPLETED)
    await world.log(task.id, ["one"], final=True)
    archiver = world.archiver()
    assert await archiver.archive_due() == 1
    await world.log(task.id, ["late"])
    assert await read_texts(world, task.id) == ["one", "late"]
    await settle(archiver)
    assert await text_of(world, task.id) == ["1 one", "1 late"]
    assert await read_texts(world, task.id) == ["one", "late"]


@pytest.mark.parametrize("purged", [True, False])
async def test_a_stored_log_goes_on_when_the_stream_was_lost(world: World, purged: bool) -> None:
    task = await world.create_task(state=State.STOPPED)
    for number in range(20):
        await world.log(task.id, [str(number)], final=number == 19)
    archiver = world.archiver()
    await archiver.archive_due()
    if purged:
        await archiver.purge_due()
    tail = world.reader().tail(OWNER, task.id, "20-5-1-0")
    await world.lose_stream(subjects.LOGS)
    await world.archiver().archive_due()
    await world.set_task(task, state=State.RUNNING, attempt=2)
    await world.log(task.id, ["again"], attempt=2)
    assert (await anext(tail))[0][0].text == "again"
    await world.log(task.id, ["and again"], attempt=2, final=True)
    expected = [*map(str, range(20)), "again", "and again"]
    assert await read_texts(world, task.id) == expected
    await world.set_task(task, state=State.COMPLETED)
    await settle(archiver)
    assert await read_texts(world, task.id) == expected
    assert [text.split(" ", 1)[1] for text in await text_of(world, task.id)] == expected
    await tail.aclose()


async def test_two_archivers_at_once_store_one_log(world: World) -> None:
    tasks = [await world.create_task(letter * 26, state=State.COMPLETED) for letter in "abcdefgh"]
    for task in tasks:
        await world.log(task.id, ["one", "two"], final=True)
    first, second = world.archiver(), world.archiver()
    stored = await asyncio.gather(first.archive_due(), second.archive_due(), return_exceptions=True)
    assert not [error for error in stored if isinstance(error, BaseException)]
    await settle(first)
    for task in tasks:
        assert await text_of(world, task.id) == ["1 one", "1 two"]
        assert await read_texts(world, task.id) == ["one", "two"]


async def test_an_object_that_vanished_is_stored_again(world: World) -> None:
    task = await world.create_task(state=State.COMPLETED)
    await world.log(task.id, ["one"], final=True)
    archiver = world.archiver()
    assert await archiver.archive_due() == 1
    await world.objects.delete(log_key(task.id))
    assert await archiver.purge_due() == 0
    await settle(archiver)
    assert await world.message_count(subjects.LOGS, subjects.log(task.id)) == 0
    assert await text_of(world, task.id) == ["1 one"]


async def test_an_object_that_was_cut_off_is_said_to_be_damaged(world: World, caplog: pytest.LogCaptureFixture) -> None:
    task = await world.create_task(state=State.STOPPED)
    await world.log(task.id, ["one", "two"], final=True)
    archiver = world.archiver()
    await settle(archiver)
    whole = await world.objects.get_bytes(log_key(task.id))
    await world.objects.put_bytes(log_key(task.id), whole[:-3])
    await world.set_task(task, state=State.COMPLETED, attempt=2)
    await world.log(task.id, ["three"], attempt=2, final=True)
    assert await archiver.archive_due() == 0
    assert "bytes, expected" in caplog.text
    assert await world.message_count(subjects.LOGS, subjects.log(task.id)) == 1


async def test_it_tries_again_when_the_object_store_fails(world: World, tmp_path: Path) -> None:
    blocked = await world.create_task("a" * 26, state=State.COMPLETED)
    other = await world.create_task("b" * 26, state=State.COMPLETED)
    obstacle = tmp_path / "objects" / "tasks" / blocked.id
    obstacle.parent.mkdir(parents=True)
    obstacle.write_text("in the way")
    running = asyncio.ensure_future(world.archiver().run())
    for task in (blocked, other):
        await world.log(task.id, ["one"], final=True)
    await eventually(lambda: world.objects.stat(log_key(other.id)))
    assert await world.objects.stat(log_key(blocked.id)) is None
    obstacle.unlink()
    await eventually(lambda: world.objects.stat(log_key(blocked.id)))
    running.cancel()
    await asyncio.wait([running])
    assert await read_texts(world, blocked.id) == ["one"]


async def test_it_outlives_an_outage_of_the_broker(world: World, caplog: pytest.LogCaptureFixture) -> None:
    task = await world.create_task(state=State.COMPLETED)
    await world.log(task.id, ["one"], final=True)
    world.server.kill()
    await eventually(lambda: not world.bus.connected)
    running = asyncio.ensure_future(world.archiver().run())
    await eventually(lambda: "trying again" in caplog.text)
    world.server.restart()
    await eventually(lambda: world.objects.stat(log_key(task.id)), 20)
    running.cancel()
    await asyncio.wait([running])
