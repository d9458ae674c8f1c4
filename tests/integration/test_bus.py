"""The event bus on a real nats-server: delivery, redelivery, replay."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from servicekit import subjects
from servicekit.bus import EventBus, Message, Outgoing, PullConsumer
from servicekit.errors import Unavailable
from tests.support.nats import NatsServer
from tests.support.waiting import eventually

WORK = subjects.work_filter("finetune", "default")


def work(task: str) -> str:
    return subjects.work("finetune", "default", task)


@pytest.fixture
async def bus(nats_server: NatsServer) -> AsyncIterator[EventBus]:
    connected = await EventBus.connect(nats_server.url, name="test")
    await connected.ensure_streams()
    yield connected
    await connected.close()


def workers(bus: EventBus, ack_wait: float = 30.0, max_deliver: int = -1) -> PullConsumer:
    return bus.consumer(subjects.WORK, "workers", WORK, ack_wait=ack_wait, max_deliver=max_deliver)


async def test_a_message_arrives_as_it_was_sent(bus: EventBus) -> None:
    sequence = await bus.publish(work("t1"), b"\x00data", message_id="id-1", headers={"ce-type": "x", "ce-id": "1"})
    (message,) = await workers(bus).fetch(10)
    assert (message.subject, message.data, message.sequence) == (work("t1"), b"\x00data", sequence)
    assert message.headers["ce-type"] == "x"
    assert message.num_delivered == 1


async def fetch_whole(consumer: PullConsumer, count: int) -> list[Message]:
    """A number of messages, in as many fetches as they need: one fetch ends when nothing more has come along."""
    messages: list[Message] = []
    while len(messages) < count:
        more = await consumer.fetch(min(256, count - len(messages)), 10)
        assert more, f"{len(messages)} of {count} messages came"
        messages += more
    return messages


async def test_a_message_id_is_stored_once(bus: EventBus) -> None:
    first = await bus.publish(work("t1"), b"one", message_id="same")
    assert await bus.publish(work("t1"), b"one", message_id="same") == first
    await bus.publish_all([Outgoing(work("t1"), b"one", "same"), Outgoing(work("t2"), b"two", "other")])
    consumer = workers(bus)
    messages = await fetch_whole(consumer, 2)
    assert [message.data for message in messages] == [b"one", b"two"]
    assert await consumer.fetch(10, 0.3) == []


async def test_publish_all_keeps_the_order(bus: EventBus) -> None:
    numbers = [str(number).encode() for number in range(2000)]
    await bus.publish_all([Outgoing(subjects.fact("t"), data) for data in numbers])
    consumer = bus.consumer(subjects.FACTS, "task-service", "fact.>", max_ack_pending=5000)
    messages = await fetch_whole(consumer, len(numbers))
    assert [message.data for message in messages] == numbers


async def test_an_acknowledged_message_leaves_the_queue(bus: EventBus) -> None:
    await bus.publish(work("t1"), b"x")
    consumer = workers(bus, ack_wait=0.3)
    (message,) = await consumer.fetch()
    await message.ack_sync()
    assert await bus.last_message(subjects.WORK, work("t1")) is None
    assert await consumer.fetch(1, 0.6) == []


async def test_what_nobody_acknowledges_comes_again(bus: EventBus) -> None:
    await bus.publish(work("t1"), b"x")
    consumer = workers(bus, ack_wait=0.3)
    (first,) = await consumer.fetch()
    (second,) = await consumer.fetch(1, 5)
    assert (first.sequence, first.num_delivered) == (second.sequence, 1)
    assert second.num_delivered == 2


async def test_progress_holds_off_redelivery(bus: EventBus) -> None:
    await bus.publish(work("t1"), b"x")
    consumer = workers(bus, ack_wait=0.6)
    (message,) = await consumer.fetch()
    for _ in range(8):
        await message.in_progress()
        assert await consumer.fetch(1, 0.2) == []
    (again,) = await consumer.fetch(1, 5)
    assert again.num_delivered == 2


async def test_a_message_given_back_comes_after_its_delay(bus: EventBus) -> None:
    await bus.publish(work("t1"), b"x")
    consumer = workers(bus)
    (message,) = await consumer.fetch()
    await message.nak()
    (message,) = await consumer.fetch(1, 2)
    began = asyncio.get_running_loop().time()
    await message.nak(delay=0.5)
    (message,) = await consumer.fetch(1, 5)
    assert asyncio.get_running_loop().time() - began > 0.4
    assert message.num_delivered == 3


async def test_a_terminated_message_is_told_of(bus: EventBus) -> None:
    await bus.publish(work("t1"), b"x")
    consumer = workers(bus, ack_wait=0.3)
    (message,) = await consumer.fetch()
    await message.term()
    advisories = bus.consumer(subjects.ADVISORIES, "advisories", f"$JS.EVENT.ADVISORY.CONSUMER.*.{subjects.WORK}.>")
    (advisory,) = await advisories.fetch(1, 5)
    assert "MSG_TERMINATED" in advisory.subject
    assert await consumer.fetch(1, 0.6) == []


async def test_a_message_past_its_deliveries_is_told_of_and_stays(bus: EventBus) -> None:
    sequence = await bus.publish(work("t1"), b"poison")
    consumer = workers(bus, ack_wait=0.1, max_deliver=2)
    for _ in range(2):
        assert len(await consumer.fetch(1, 5)) == 1
    fetching = asyncio.ensure_future(consumer.fetch(1, 5))
    advisories = bus.consumer(subjects.ADVISORIES, "advisories", f"$JS.EVENT.ADVISORY.CONSUMER.*.{subjects.WORK}.>")
    (advisory,) = await advisories.fetch(1, 5)
    assert "MAX_DELIVERIES" in advisory.subject
    assert await bus.message_at(subjects.WORK, sequence) == (work("t1"), b"poison")
    await bus.delete_message(subjects.WORK, sequence)
    assert await bus.message_at(subjects.WORK, sequence) is None
    fetching.cancel()


async def test_workers_share_a_queue(bus: EventBus, nats_server: NatsServer) -> None:
    other = await EventBus.connect(nats_server.url, name="other")
    await bus.publish_all([Outgoing(work(f"t{number}"), b"") for number in range(40)])
    consumers, got = [workers(bus), workers(other)], []

    async def drain(consumer: PullConsumer) -> None:
        while len(got) < 40:
            for message in await consumer.fetch(1, 0.2):
                got.append(message.subject)
                await message.ack()

    await asyncio.gather(*(drain(consumer) for consumer in consumers))
    assert sorted(got) == sorted(work(f"t{number}") for number in range(40))
    await other.close()


async def test_a_waiting_fetch_gets_a_message_at_once(bus: EventBus) -> None:
    consumer = workers(bus)
    waiting = asyncio.ensure_future(consumer.fetch(1, 20))
    assert not (await asyncio.wait([waiting], timeout=0.1))[0]
    began = asyncio.get_running_loop().time()
    await bus.publish(work("t1"), b"x")
    assert len(await waiting) == 1
    assert asyncio.get_running_loop().time() - began < 1


async def test_a_cancelled_fetch_loses_nothing(bus: EventBus) -> None:
    consumer = workers(bus, ack_wait=1.0)
    for number in range(60):
        await consumer.restart()
        waiting = asyncio.ensure_future(consumer.fetch(1, 20))
        await asyncio.wait([waiting], timeout=number * 0.0002)
        waiting.cancel()
        assert (await asyncio.wait([waiting], timeout=5))[0], "a cancelled fetch went on"
    await bus.publish(work("t1"), b"x")
    (message,) = await consumer.fetch(1, 5)
    assert message.data == b"x"


async def turns(number: int) -> None:
    """Lets the event loop go round some times."""
    for _ in range(number):
        await asyncio.sleep(0)


@pytest.mark.parametrize("call", ["ensure_streams", "last_message", "message_at", "sequences", "purge", "publish"])
async def test_a_cancelled_caller_ends(bus: EventBus, call: str) -> None:
    """Whatever the moment, also when the answer has just come."""
    calls = {
        "ensure_streams": bus.ensure_streams,
        "last_message": lambda: bus.last_message(subjects.LOGS, "log.t"),
        "message_at": lambda: bus.message_at(subjects.LOGS, 1),
        "sequences": lambda: bus.sequences(subjects.LOGS),
        "purge": lambda: bus.purge(subjects.LOGS, "log.t"),
        "publish": lambda: bus.publish(work("t"), b""),
    }

    async def forever() -> None:
        while True:
            await calls[call]()

    for number in range(150):
        task = asyncio.create_task(forever())
        await turns(number)
        task.cancel()
        assert (await asyncio.wait([task], timeout=5))[0], f"{call} went on, cancelled after {number} turns"
        assert task.cancelled()


async def test_a_release_that_is_cut_short_leaves_the_connection_alive(bus: EventBus) -> None:
    """Whatever the moment, as when a caller goes away twice while its stream is being closed."""
    for number in range(40):
        consumer = workers(bus)
        fetching = asyncio.create_task(consumer.fetch(1, 20))
        await turns(20)
        fetching.cancel()
        await asyncio.wait([fetching])
        releasing = asyncio.create_task(bus.release(consumer))
        await turns(number)
        releasing.cancel()
        await asyncio.wait([releasing])
        async with asyncio.timeout(3):
            await bus.sequences(subjects.WORK)


async def test_closing_gives_back_what_was_not_handed_out(bus: EventBus, nats_server: NatsServer) -> None:
    leaving = await EventBus.connect(nats_server.url, name="leaving")
    consumer = workers(leaving)
    waiting = asyncio.ensure_future(consumer.fetch(10, 20))
    await asyncio.wait([waiting], timeout=0.1)
    waiting.cancel()
    await bus.publish_all([Outgoing(work(f"t{number}"), b"") for number in range(5)])
    await asyncio.wait([waiting])
    await leaving.close()
    staying = workers(bus)
    got = await fetch_whole(staying, 5)
    assert len({message.sequence for message in got}) == 5


async def numbered(bus: EventBus, first: int, last: int, task: str = "t") -> None:
    await bus.publish_all([Outgoing(subjects.log(task), str(number).encode()) for number in range(first, last)])


async def take(messages: AsyncIterator[Message], count: int) -> list[Message]:
    taken: list[Message] = []
    async with asyncio.timeout(20):
        while len(taken) < count:
            taken.append(await anext(messages))
    return taken


async def test_replay_from_a_cursor_then_live(bus: EventBus) -> None:
    await numbered(bus, 0, 1000)
    await numbered(bus, 0, 10, task="other")
    async with aclosing(bus.replay(subjects.LOGS, subjects.log("t"))) as messages:
        got = await take(messages, 1000)
        assert [int(message.data) for message in got] == list(range(1000))
        await numbered(bus, 1000, 1003)
        assert [int(message.data) for message in await take(messages, 3)] == [1000, 1001, 1002]
    cursor = got[500].sequence
    async with aclosing(bus.replay(subjects.LOGS, subjects.log("t"), cursor)) as messages:
        assert [int(message.data) for message in await take(messages, 3)] == [501, 502, 503]


async def test_replay_may_begin_beyond_the_end(bus: EventBus) -> None:
    await numbered(bus, 0, 3)
    _, last = await bus.sequences(subjects.LOGS)
    async with aclosing(bus.replay(subjects.LOGS, subjects.log("t"), last)) as messages:
        waiting = asyncio.ensure_future(anext(messages))
        await asyncio.wait([waiting], timeout=0.2)
        await numbered(bus, 3, 4)
        assert (await asyncio.wait_for(waiting, 5)).data == b"3"


async def test_replay_passes_over_what_was_purged(bus: EventBus) -> None:
    await numbered(bus, 0, 10)
    await bus.purge(subjects.LOGS, subjects.log("t"))
    await numbered(bus, 10, 12)
    async with aclosing(bus.replay(subjects.LOGS, subjects.log("t"))) as messages:
        assert [message.data for message in await take(messages, 2)] == [b"10", b"11"]
        await bus.purge(subjects.LOGS, subjects.log("t"))
        await numbered(bus, 12, 13)
        assert [message.data for message in await take(messages, 1)] == [b"12"]


async def test_a_slow_reader_loses_nothing(bus: EventBus) -> None:
    reading = bus.replay(subjects.LOGS, subjects.log("t"))
    async with aclosing(reading) as messages:
        await numbered(bus, 0, 1)
        assert (await take(messages, 1))[0].data == b"0"
        await numbered(bus, 1, 3000)
        assert [int(message.data) for message in await take(messages, 2999)] == list(range(1, 3000))


async def test_an_ended_replay_leaves_no_consumer(bus: EventBus, nats_server: NatsServer) -> None:
    await numbered(bus, 0, 3)
    async with aclosing(bus.replay(subjects.LOGS, subjects.log("t"))) as messages:
        await take(messages, 3)
        assert await consumers_of(bus, subjects.LOGS) == 1
    await eventually(lambda: none_left(bus), what="the consumer to be gone")


async def consumers_of(bus: EventBus, stream: str) -> int:
    info = await bus._js.stream_info(stream)
    return int(info.state.consumer_count)


async def none_left(bus: EventBus) -> bool:
    return await consumers_of(bus, subjects.LOGS) == 0


async def test_looking_up_and_removing(bus: EventBus) -> None:
    assert await bus.last_message(subjects.WORK, work("t1")) is None
    assert await bus.sequences(subjects.WORK) == (0, 0) or (await bus.sequences(subjects.WORK))[1] == 0
    await bus.publish(work("t1"), b"old")
    sequence = await bus.publish(work("t1"), b"new")
    await bus.publish(work("t2"), b"other")
    assert await bus.last_message(subjects.WORK, work("t1")) == (sequence, b"new")
    assert await bus.message_at(subjects.WORK, sequence) == (work("t1"), b"new")
    await bus.delete_message(subjects.WORK, sequence)
    await bus.delete_message(subjects.WORK, sequence)
    assert await bus.last_message(subjects.WORK, work("t1")) == (sequence - 1, b"old")
    await bus.purge(subjects.WORK, work("t1"))
    assert await bus.last_message(subjects.WORK, work("t1")) is None
    assert (await bus.last_message(subjects.WORK, work("t2")) or ())[1:] == (b"other",)
    await bus.purge("NOSUCH", work("t1"))
    assert await bus.sequences("NOSUCH") == (0, 0)
    assert await bus.last_message("NOSUCH", "x") is None


async def test_best_effort_subscription(bus: EventBus) -> None:
    got: list[tuple[str, bytes]] = []

    async def handle(subject: str, data: bytes) -> None:
        got.append((subject, data))

    unsubscribe = await bus.subscribe(subjects.state_changes_of("t"), handle)
    await bus.publish(subjects.event("task.completed", "t"), b"1")
    await bus.publish(subjects.event("task.completed", "other"), b"2")
    await eventually(lambda: got)
    await unsubscribe()
    await bus.publish(subjects.event("task.failed", "t"), b"3")
    assert got == [("tunesmith.v1.task.completed.t", b"1")]


async def test_streams_are_made_again_and_again(bus: EventBus) -> None:
    await bus.publish(work("t1"), b"x")
    await bus.ensure_streams()
    assert (await bus.last_message(subjects.WORK, work("t1")) or ())[1:] == (b"x",)


async def test_no_broker_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="127") as caught:
        await EventBus.connect("nats://user:secret@127.0.0.1:1", name="test", patience=0.5)
    assert "secret" not in str(caught.value)


async def test_a_wrong_password_is_unavailable(tmp_path: Path) -> None:
    with NatsServer(tmp_path, extra='authorization { users: [{user: "worker", password: "right"}] }') as server:
        with pytest.raises(Unavailable, match=r"(?i)authorization") as caught:
            await EventBus.connect(server.url, name="test", user="worker", password="wrong", patience=1)
        assert "wrong" not in str(caught.value)
        bus = await EventBus.connect(server.url, name="test", user="worker", password="right")
        await bus.close()


async def test_a_broker_that_starts_late_is_waited_for(nats_server: NatsServer) -> None:
    nats_server.kill()
    connecting = asyncio.ensure_future(EventBus.connect(nats_server.url, name="test"))
    await asyncio.to_thread(nats_server.restart)
    await (await connecting).close()


async def test_a_subject_without_a_stream_is_unavailable(bus: EventBus) -> None:
    with pytest.raises(Unavailable, match=r"nowhere\.to\.go"):
        await bus.publish("nowhere.to.go", b"x")
    with pytest.raises(Unavailable):
        await bus.publish_all([Outgoing("nowhere.to.go", b"x")])
