"""Logs as clients read them: live, stored, and across the change from one to the other."""

import asyncio
import itertools
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from servicekit import subjects
from servicekit.errors import InvalidArgument, NotFound
from services.task_service.tests.streams.world import OWNER, QUICK, STRANGER, World
from task_service.domain.lifecycle import State
from task_service.streams.archives import log_key
from tests.support.waiting import eventually
from tunesmith.task.v1.task_pb2 import LogLine

Tail = AsyncGenerator[tuple[list[LogLine], str], None]


def texts(lines: list[LogLine]) -> list[str]:
    return [line.text for line in lines]


async def take(tail: Tail, count: int) -> tuple[list[str], str]:
    """The next lines of a tail, as many as its portions make up at least count, and the cursor after them."""
    found: list[str] = []
    async with asyncio.timeout(10):
        while len(found) < count:
            lines, cursor = await anext(tail)
            found += texts(lines)
    return found, cursor


async def everything(tail: Tail) -> list[str]:
    async with asyncio.timeout(20), aclosing(tail):
        return [text async for lines, _ in tail for text in texts(lines)]


async def test_reads_parts_of_a_live_log(world: World) -> None:
    task = await world.create_task()
    for start in range(0, 100, 10):
        await world.log(task.id, [f"line {number}" for number in range(start, start + 10)])
    reader = world.reader()
    parts = [(0, 0, 0), (3, 0, 97), (0, 95, 95), (200, 98, 98), (2, 99, 99), (5, 100, 100), (0, 7, 7), (1, 500, 100)]
    for tail, offset, first in parts:
        lines, total = await reader.read(OWNER, task.id, tail=tail, offset=offset)
        assert total == 100
        assert texts(lines) == [f"line {number}" for number in range(first, 100)], (tail, offset)


async def test_a_log_that_nobody_wrote_is_empty(world: World) -> None:
    task = await world.create_task(attempt=0, state=State.PENDING)
    assert await world.reader().read(OWNER, task.id, tail=5) == ([], 0)


async def test_others_see_no_log(world: World) -> None:
    task = await world.create_task()
    with pytest.raises(NotFound):
        await world.reader().read(STRANGER, task.id)
    with pytest.raises(NotFound):
        await everything(world.reader().tail(STRANGER, task.id))


@pytest.mark.parametrize(
    "cursor", ["x", "1", "1-2-3", "1-2-3-4-5", "-1-2-3-4", "1-2-3-x", "99999999999999999999-1-1-1", "١-1-1-1"]
)
async def test_a_bad_cursor_is_refused(world: World, cursor: str) -> None:
    task = await world.create_task()
    with pytest.raises(InvalidArgument, match="cursor"):
        await everything(world.reader().tail(OWNER, task.id, cursor))


async def test_a_reader_of_a_long_log_begins_near_its_end(world: World) -> None:
    """The second read of a log replays what came since the first, not the whole log."""
    task = await world.create_task()
    reader = world.reader()
    for number in range(40):
        await world.log(task.id, [f"{number}.{line}" for line in range(100)])
        for _ in range(2):
            lines, total = await reader.read(OWNER, task.id, tail=1)
            assert (texts(lines), total) == ([f"{number}.99"], 100 * (number + 1))
    # What an index entry does not need is taken away, so a reader that goes back to the start would notice.
    await world.bus.purge(subjects.LOGS, subjects.log(task.id), up_to=30)
    lines, total = await reader.read(OWNER, task.id, tail=150)
    assert total == 4000
    assert (texts(lines)[0], texts(lines)[-1], len(lines)) == ("38.50", "39.99", 150)
    await world.lose_stream(subjects.LOGS)
    await world.log(task.id, ["new"])
    assert (texts((await reader.read(OWNER, task.id))[0])) == ["new"]


async def test_lines_of_an_older_attempt_are_dropped(world: World) -> None:
    task = await world.create_task(attempt=2)
    await world.log(task.id, ["a", "b"], attempt=1)
    await world.log(task.id, ["c"], attempt=2)
    await world.log(task.id, ["late"], attempt=1)
    await world.log(task.id, ["d"], attempt=2)
    lines, total = await world.reader().read(OWNER, task.id)
    assert (texts(lines), total, [line.attempt for line in lines]) == (["a", "b", "c", "d"], 4, [1, 1, 2, 2])


async def test_a_fence_holds_across_a_cursor(world: World) -> None:
    task = await world.create_task(attempt=2)
    await world.log(task.id, ["a"], attempt=2)
    tail = world.reader().tail(OWNER, task.id)
    _, cursor = await take(tail, 1)
    await tail.aclose()
    await world.log(task.id, ["late"], attempt=1)
    await world.log(task.id, ["b"], attempt=2)
    assert (await take(world.reader().tail(OWNER, task.id, cursor), 1))[0] == ["b"]


async def test_a_batch_that_comes_again_adds_nothing(world: World) -> None:
    """As after an outage that outlasts the broker's memory of message ids."""
    task = await world.create_task()
    for number in (1, 2, 3, 2, 3, 4):
        await world.log(task.id, [f"a{number}"], number=number, final=number == 4)
    expected = ["a1", "a2", "a3", "a4"]
    lines, total = await world.reader().read(OWNER, task.id)
    assert (texts(lines), total) == (expected, 4)
    tail = world.reader().tail(OWNER, task.id)
    _, cursor = await take(tail, 4)
    await tail.aclose()
    await world.set_task(task, state=State.STOPPED)
    assert await world.archiver().archive_due() == 1
    await world.log(task.id, ["a4"], number=4, final=True)
    await world.set_task(task, state=State.RUNNING, attempt=2)
    await world.log(task.id, ["b1"], attempt=2, number=1)
    assert (await take(world.reader().tail(OWNER, task.id, cursor), 1))[0] == ["b1"]
    assert texts((await world.reader().read(OWNER, task.id))[0]) == [*expected, "b1"]


async def test_text_is_kept_whatever_it_holds(world: World) -> None:
    seen = ["", " two  spaces ", "tab\tand\rreturn", "中文 \U0001f600", "\x00\x1b[31mred", "\u2028", "x" * 100_000]
    written = [*seen, "a\nb\n"]
    seen += ["a", "b"]
    task = await world.create_task()
    await world.log(task.id, written, final=True)
    live, _ = await world.reader().read(OWNER, task.id)
    assert texts(live) == seen
    await world.set_task(task, state=State.COMPLETED)
    assert await world.archiver().archive_due() == 1
    stored, total = await world.reader().read(OWNER, task.id)
    assert (stored, total) == (live, len(seen))
    assert (await world.objects.get_bytes(log_key(task.id))).decode().splitlines()[0].split(" ")[1:] == ["1", ""]


async def test_bytes_that_are_no_batch_are_passed_over(world: World) -> None:
    task = await world.create_task()
    await world.log(task.id, ["a"])
    await world.bus.publish(subjects.log(task.id), b"\xff\xff\xff")
    await world.log(task.id, ["b"])
    assert texts((await world.reader().read(OWNER, task.id))[0]) == ["a", "b"]


async def test_tail_follows_and_ends_with_the_task(world: World) -> None:
    task = await world.create_task()
    await world.log(task.id, ["one", "two"])
    tail = world.reader().tail(OWNER, task.id)
    assert (await take(tail, 2))[0] == ["one", "two"]
    await world.log(task.id, ["three"])
    assert (await take(tail, 1))[0] == ["three"]
    await world.log(task.id, ["four"], final=True)
    assert (await take(tail, 1))[0] == ["four"]
    await world.set_task(task, state=State.COMPLETED)
    assert await everything(tail) == []
    assert await world.consumer_count(subjects.LOGS) == 0


async def test_tail_waits_for_the_last_lines_of_an_ended_task(world: World) -> None:
    task = await world.create_task(state=State.COMPLETED)
    await world.log(task.id, ["one"])
    tail = world.reader().tail(OWNER, task.id)
    await take(tail, 1)
    await world.log(task.id, ["late"], final=True)
    assert await everything(tail) == ["late"]


async def test_tail_ends_without_a_last_batch_in_the_end(world: World) -> None:
    task = await world.create_task(state=State.FAILED)
    await world.log(task.id, ["one"])
    assert await everything(world.reader().tail(OWNER, task.id)) == ["one"]


async def test_tail_goes_on_through_retry_and_resume(world: World) -> None:
    task = await world.create_task()
    tail = world.reader().tail(OWNER, task.id)
    await world.log(task.id, ["first"], attempt=1, final=True)
    await take(tail, 1)
    await world.set_task(task, state=State.PENDING)
    reading = asyncio.ensure_future(take(tail, 1))
    await world.set_task(task, state=State.RUNNING, attempt=2)
    await world.log(task.id, ["second"], attempt=2)
    assert (await reading)[0] == ["second"]
    await tail.aclose()


async def test_tail_of_a_deleted_task_ends(world: World) -> None:
    task = await world.create_task()
    await world.log(task.id, ["one"])
    tail = world.reader().tail(OWNER, task.id)
    await take(tail, 1)
    await world.set_task(task, delete_time=1)
    assert await everything(tail) == []


async def test_closing_a_tail_frees_its_consumer(world: World) -> None:
    task = await world.create_task()
    await world.log(task.id, ["one"])
    tails = [world.reader().tail(OWNER, task.id) for _ in range(5)]
    for tail in tails:
        await take(tail, 1)
    assert await world.consumer_count(subjects.LOGS) == 5
    waiting = [asyncio.ensure_future(everything(tail)) for tail in tails[:3]]
    await asyncio.wait(waiting, timeout=0.2)
    for reading in waiting:
        reading.cancel()
    await asyncio.wait(waiting)
    for tail in tails[3:]:
        await tail.aclose()
    assert await world.consumer_count(subjects.LOGS) == 0


async def test_every_cursor_goes_on_at_its_line(world: World) -> None:
    """Cursors taken live and from the store, used live, after storing, and after purging."""
    task = await world.create_task()
    sizes = itertools.cycle([1, 0, 7, 400])
    count = 0
    for size in itertools.islice(sizes, 12):
        await world.log(task.id, [str(number) for number in range(count, count + size)])
        count += size
    await world.log(task.id, ["end"], final=True)
    expected = [*map(str, range(count)), "end"]

    async def cursors() -> dict[str, int]:
        found = {"": 0, "500-0-0-0": 500}
        tail = world.reader().tail(OWNER, task.id)
        seen = 0
        while seen < len(expected):
            lines, cursor = await anext(tail)
            seen += len(lines)
            found[cursor] = seen
        await tail.aclose()
        return found

    async def check(known: dict[str, int]) -> None:
        for cursor, line in known.items():
            assert await everything(world.reader().tail(OWNER, task.id, cursor)) == expected[line:], cursor

    known = await cursors()
    await world.set_task(task, state=State.COMPLETED)
    await check(known)
    archiver = world.archiver()
    assert await archiver.archive_due() == 1
    known |= await cursors()
    await check(known)
    assert await archiver.purge_due() == 1
    assert await world.message_count(subjects.LOGS, subjects.log(task.id)) == 0
    known |= await cursors()
    await check(known)


async def test_a_tail_that_lags_behind_loses_nothing_when_the_stream_is_purged(world: World) -> None:
    task = await world.create_task()
    for number in range(3000):
        await world.log(task.id, [str(number)])
    await world.log(task.id, [], final=True)
    tail = world.reader().tail(OWNER, task.id)
    begun, _ = await take(tail, 1)
    await world.set_task(task, state=State.COMPLETED)
    archiver = world.archiver()
    assert await archiver.archive_due() == 1
    await eventually(lambda: asyncio.sleep(QUICK.recheck, True))
    assert await archiver.purge_due() == 1
    assert begun + await everything(tail) == [str(number) for number in range(3000)]


async def test_tail_goes_on_when_the_stream_was_lost(world: World) -> None:
    task = await world.create_task()
    for number in range(10):
        await world.log(task.id, [str(number)])
    tail = world.reader().tail(OWNER, task.id)
    await take(tail, 10)
    reading = asyncio.ensure_future(take(tail, 1))
    await world.lose_stream(subjects.LOGS)
    await world.log(task.id, ["new"])
    assert (await reading)[0] == ["new"]
    await tail.aclose()


async def test_tail_survives_a_restart_of_the_broker(world: World) -> None:
    task = await world.create_task()
    tail = world.reader().tail(OWNER, task.id)
    found: list[str] = []

    async def read() -> None:
        async for lines, _ in tail:
            found.extend(texts(lines))

    reading = asyncio.ensure_future(read())
    for restart in range(3):
        await world.log(task.id, [f"before {restart}"])
        await eventually(lambda: found[-1:] == [f"before {restart}"])  # noqa: B023
        await world.restart_broker()
        await world.log(task.id, [f"after {restart}"])
    await world.log(task.id, ["end"], final=True)
    await world.set_task(task, state=State.COMPLETED)
    async with asyncio.timeout(20):
        await reading
    assert found == [text for restart in range(3) for text in (f"before {restart}", f"after {restart}")] + ["end"]
