"""Messages that nobody could work on: kept, off the queue, and their tasks told."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from sqlalchemy import select

from servicekit import subjects
from servicekit.bus import EventBus
from servicekit.errors import Unavailable
from servicekit.outbox import Outbox, Relay
from services.task_service.tests.streams.world import World
from task_service.commands.core import Core
from task_service.database.models import OUTBOX, TaskRow
from task_service.domain.lifecycle import State
from task_service.domain.policy import Policy
from task_service.streams.deadletters import DeadLetters, GiveUp
from task_service.streams.undeliverable import Undeliverable
from tests.support.waiting import eventually
from tunesmith.events.v1.fact_pb2 import WorkItem

KIND, POOL = "finetune", "default"


@asynccontextmanager
async def handling(bus: EventBus, give_up: GiveUp) -> AsyncIterator[DeadLetters]:
    letters = DeadLetters(bus, give_up)
    running = asyncio.ensure_future(letters.run())
    try:
        yield letters
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def nobody(task_id: str, attempt: int, what: str) -> None:
    raise AssertionError(f"{task_id} {attempt} {what}")


async def deliver_in_vain(bus: EventBus, messages: int = 1, times: int = 2) -> None:
    """A worker that gives messages back until the broker gives them up, as one that crashes would."""
    consumer = bus.consumer(subjects.WORK, "worker", subjects.work_filter(KIND, POOL), ack_wait=0.5, max_deliver=times)
    _, before = await bus.sequences(subjects.ADVISORIES)

    async def given_up() -> bool:
        for message in await consumer.fetch(10, 0.3):  # it is given up when it would be delivered once more
            await message.nak()
        return (await bus.sequences(subjects.ADVISORIES))[1] >= before + messages

    await eventually(given_up)
    await bus.release(consumer)


async def publish(world: World, task_id: str, attempt: int = 1) -> None:
    item = WorkItem(task_id=task_id, attempt=attempt)
    await world.bus.publish(subjects.work(KIND, POOL, task_id), item.SerializeToString())


async def kept(world: World) -> list[tuple[str, bytes, dict[str, str]]]:
    """What DEADLETTERS holds."""
    first, last = await world.bus.sequences(subjects.DEADLETTERS)
    found = []
    for sequence in range(max(first, 1), last + 1):
        raw = await world.bus._js.get_msg(subjects.DEADLETTERS, sequence)
        found.append((str(raw.subject), raw.data or b"", dict(raw.headers or {})))
    return found


async def queued(world: World) -> int:
    return await world.message_count(subjects.WORK, "work.>")


async def test_a_message_nobody_took_on_is_kept_and_its_task_told(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[tuple[str, int, str]] = []

    async def give_up(task_id: str, attempt: int, what: str) -> None:
        told.append((task_id, attempt, what))

    await publish(world, "t" * 26, 3)
    await publish(world, "u" * 26)
    await deliver_in_vain(world.bus, messages=2)
    assert await queued(world) == 2
    async with handling(world.bus, give_up) as letters:
        await eventually(lambda: letters.counts["dead"] == 2)
    assert await queued(world) == 0
    assert await world.message_count(subjects.ADVISORIES, ">") == 0
    assert [(task_id, attempt) for task_id, attempt, _ in told] == [("t" * 26, 3), ("u" * 26, 1)]
    (subject, data, headers), _ = await kept(world)
    assert subject == "deadletter.work.finetune.default." + "t" * 26
    assert WorkItem.FromString(data) == WorkItem(task_id="t" * 26, attempt=3)
    assert headers["Tunesmith-Reason"] == told[0][2]
    assert (headers["Tunesmith-Deliveries"], headers["Tunesmith-Consumer"]) == ("2", "worker")
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert ["1 so far" in warnings[0], "2 so far" in warnings[1]] == [True, True]


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff",
        b"",
        WorkItem(task_id="t" * 26).SerializeToString(),
        WorkItem(task_id="u" * 26, attempt=1).SerializeToString(),
    ],
)
async def test_a_message_that_is_no_work_item_is_only_kept(world: World, data: bytes) -> None:
    await world.bus.publish(subjects.work(KIND, POOL, "t" * 26), data)
    await deliver_in_vain(world.bus)
    async with handling(world.bus, nobody) as letters:
        await eventually(lambda: letters.counts["dead"] == 1)
    assert await queued(world) == 0
    assert [item[1] for item in await kept(world)] == [data]


async def test_a_message_that_a_worker_refused_is_counted(world: World) -> None:
    await publish(world, "t" * 26)
    consumer = world.bus.consumer(subjects.WORK, "worker", subjects.work_filter(KIND, POOL))
    (message,) = await consumer.fetch(1)
    await message.term()
    async with handling(world.bus, nobody) as letters:
        await eventually(lambda: letters.counts["refused"] == 1)
    assert (await kept(world), await queued(world)) == ([], 0)


async def test_advisories_wait_for_a_handler_over_a_restart_of_the_broker(world: World) -> None:
    await publish(world, "t" * 26)
    await deliver_in_vain(world.bus)
    await world.restart_broker()
    told: list[str] = []

    async def give_up(task_id: str, attempt: int, what: str) -> None:
        told.append(task_id)

    async with handling(world.bus, give_up) as letters:
        await eventually(lambda: letters.counts["dead"] == 1)
    assert (told, await queued(world), len(await kept(world))) == (["t" * 26], 0, 1)


async def test_a_step_that_failed_is_repeated_without_a_second_copy(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("task_service.streams.deadletters.RETRY_SECONDS", 0.05)
    told: list[str] = []

    async def give_up(task_id: str, attempt: int, what: str) -> None:
        told.append(task_id)
        if len(told) < 3:
            raise Unavailable("the database is away")

    await publish(world, "t" * 26)
    await deliver_in_vain(world.bus)
    async with handling(world.bus, give_up) as letters:
        await eventually(lambda: letters.counts["dead"] == 1)
    assert (len(told), await queued(world), len(await kept(world))) == (3, 0, 1)


async def test_other_messages_among_the_advisories_are_dropped(world: World) -> None:
    for data in (b"no json", b"[1]", b'{"type": "x"}'):
        await world.bus.publish("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.WORK.x", data)

    async def empty() -> bool:
        return await world.message_count(subjects.ADVISORIES, ">") == 0

    async with handling(world.bus, nobody):
        await eventually(empty)


async def test_a_task_whose_message_is_dead_time_and_again_fails(world: World) -> None:
    """Through the real life cycle: another message each time, and in the end a reason instead of silence."""
    task = await world.create_task(state=State.PENDING, attempt=0)
    core = Core(world.database, Outbox(OUTBOX), Policy(max_attempts=3, backoff_initial=0.01))
    relay = asyncio.ensure_future(Relay(core.outbox, world.database.sessions, world.bus).run())

    async def now() -> TaskRow:
        async with world.database.reading() as session:
            row = await session.scalar(select(TaskRow).where(TaskRow.number == task.number))
            assert row is not None
            return row

    async def failed() -> bool:
        return (await now()).state == State.FAILED

    await publish(world, task.id)
    async with handling(world.bus, Undeliverable(core)) as letters:
        await deliver_in_vain(world.bus, messages=3)
        await eventually(failed)
        await eventually(lambda: letters.counts["dead"] == 3)
    relay.cancel()
    row = await now()
    assert row.error_reason == "UNDELIVERABLE"
    assert "delivered 2 times" in row.error_message
    assert (await queued(world), len(await kept(world))) == (0, 3)


async def test_a_task_that_runs_is_not_touched(world: World) -> None:
    task = await world.create_task(state=State.RUNNING, attempt=1)
    core = Core(world.database, Outbox(OUTBOX), Policy())
    for task_id in (task.id, "u" * 26):
        await Undeliverable(core)(task_id, 1, "it was delivered 2 times")
    async with world.database.reading() as session:
        row = await session.scalar(select(TaskRow))
    assert row is not None
    assert (row.state, row.failures, row.error_reason) == (State.RUNNING, 0, "")
