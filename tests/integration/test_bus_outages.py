"""The event bus while nats-server is killed and started again: nothing acknowledged is lost, nothing comes twice."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from servicekit import subjects
from servicekit.bus import EventBus, Outgoing
from servicekit.errors import Unavailable
from tests.support.nats import NatsServer
from tests.support.waiting import eventually

MESSAGES = 1500
OUTAGES = 3


@pytest.fixture
async def bus(nats_server: NatsServer) -> AsyncIterator[EventBus]:
    connected = await EventBus.connect(nats_server.url, name="test")
    await connected.ensure_streams()
    yield connected
    await connected.close()


async def publish_until_stored(bus: EventBus, message: Outgoing) -> int:
    """What every publisher of the platform does: the same message id again until the broker has it."""
    while True:
        try:
            return await bus.publish(message.subject, message.data, message_id=message.message_id)
        except Unavailable:
            await eventually(lambda: bus.connected, 20)


async def publish_numbers(bus: EventBus, subject: str) -> None:
    for first in range(0, MESSAGES, 50):
        numbers = range(first, first + 50)
        messages = [Outgoing(subject, str(number).encode(), f"{subject}-{number}") for number in numbers]
        while True:
            try:
                await bus.publish_all(messages)
                break
            except Unavailable:
                await eventually(lambda: bus.connected, 20)


async def outages(server: NatsServer, progress: "asyncio.Queue[int]") -> None:
    """Kills the server each time that some more messages have come through."""
    seen = 0
    for number in range(OUTAGES):
        while seen < (number + 1) * MESSAGES // (OUTAGES + 2):
            seen = await progress.get()
        await asyncio.to_thread(server.restart)


async def test_a_consumer_goes_on(bus: EventBus, nats_server: NatsServer) -> None:
    other = await EventBus.connect(nats_server.url, name="publisher")
    handled: dict[str, int] = {}
    progress: asyncio.Queue[int] = asyncio.Queue()

    async def consume() -> None:
        consumer = bus.consumer(subjects.FACTS, "task-service", "fact.>", ack_wait=2)
        while len(handled) < MESSAGES:
            for message in await consumer.fetch(100, 5):
                handled.setdefault(message.data.decode(), message.sequence)
                try:
                    await message.ack()
                except Unavailable:
                    continue
            progress.put_nowait(len(handled))

    async with asyncio.timeout(50):
        await asyncio.gather(consume(), publish_numbers(other, subjects.fact("t")), outages(nats_server, progress))
    assert sorted(handled, key=int) == [str(number) for number in range(MESSAGES)]
    # In order, and each stored once in spite of all that was published again.
    ordered = [handled[str(number)] for number in range(MESSAGES)]
    assert len(set(ordered)) == MESSAGES
    await other.close()


async def test_a_replay_goes_on(bus: EventBus, nats_server: NatsServer) -> None:
    other = await EventBus.connect(nats_server.url, name="publisher")
    got: list[int] = []
    progress: asyncio.Queue[int] = asyncio.Queue()

    async def read() -> None:
        async with aclosing(bus.replay(subjects.LOGS, subjects.log("t"))) as messages:
            async for message in messages:
                got.append(int(message.data))
                progress.put_nowait(len(got))
                if len(got) == MESSAGES:
                    return

    async with asyncio.timeout(50):
        await asyncio.gather(read(), publish_numbers(other, subjects.log("t")), outages(nats_server, progress))
    assert got == list(range(MESSAGES))
    await other.close()


async def test_a_waiting_reader_hears_of_what_came_after_the_outage(bus: EventBus, nats_server: NatsServer) -> None:
    await bus.publish(subjects.log("t"), b"before")
    async with aclosing(bus.replay(subjects.LOGS, subjects.log("t"))) as messages:
        assert (await anext(messages)).data == b"before"
        waiting = asyncio.ensure_future(anext(messages))
        consumer = bus.consumer(subjects.WORK, "workers", "work.>")
        fetching = asyncio.ensure_future(consumer.fetch(1, 30))
        await asyncio.wait([waiting, fetching], timeout=0.2)
        await asyncio.to_thread(nats_server.restart)
        await publish_until_stored(bus, Outgoing(subjects.log("t"), b"after", "after"))
        await publish_until_stored(bus, Outgoing("work.finetune.default.t", b"work", "work"))
        async with asyncio.timeout(10):
            assert (await waiting).data == b"after"
            assert [message.data for message in await fetching] == [b"work"]


async def test_publishing_without_a_broker_is_unavailable_and_stores_at_most_once(
    bus: EventBus, nats_server: NatsServer
) -> None:
    nats_server.kill()
    operations = (
        bus.publish(subjects.fact("t"), b"x", message_id="id"),
        bus.publish_all([Outgoing(subjects.fact("t"), b"x", "id")]),
        bus.last_message(subjects.FACTS, subjects.fact("t")),
        bus.message_at(subjects.FACTS, 1),
        bus.purge(subjects.FACTS, subjects.fact("t")),
        bus.delete_message(subjects.FACTS, 1),
        bus.sequences(subjects.FACTS),
        bus.ensure_streams(),
    )
    results = await asyncio.gather(*operations, return_exceptions=True)
    assert [type(result) for result in results] == [Unavailable] * len(operations)
    await asyncio.to_thread(nats_server.restart)
    await publish_until_stored(bus, Outgoing(subjects.fact("t"), b"x", "id"))
    assert (await bus.sequences(subjects.FACTS))[1] == 1


async def test_an_acknowledgement_after_an_outage_counts_or_the_message_comes_again(
    bus: EventBus, nats_server: NatsServer
) -> None:
    await bus.publish(subjects.fact("t"), b"x")
    consumer = bus.consumer(subjects.FACTS, "task-service", "fact.>", ack_wait=30)
    (message,) = await consumer.fetch()
    await asyncio.to_thread(nats_server.restart)
    await eventually(lambda: bus.connected)
    try:
        await message.ack_sync()
    except Unavailable:
        # The server had not yet written down that it delivered the message.
        (message,) = await consumer.fetch(1, 10)
        await message.ack_sync()
    assert await bus.last_message(subjects.FACTS, subjects.fact("t")) is None


async def test_a_deleted_stream_is_made_again(bus: EventBus) -> None:
    consumer = bus.consumer(subjects.WORK, "workers", "work.>")
    fetching = asyncio.ensure_future(consumer.fetch(1, 30))
    await asyncio.wait([fetching], timeout=0.2)
    await bus._js.delete_stream(subjects.WORK)
    async with asyncio.timeout(20):
        await bus.ensure_streams()
        await bus.publish("work.finetune.default.t", b"x")
        assert [message.data for message in await fetching] == [b"x"]


async def test_closing_without_a_broker_is_quick(nats_server: NatsServer) -> None:
    bus = await EventBus.connect(nats_server.url, name="test")
    await bus.ensure_streams()
    consumer = bus.consumer(subjects.WORK, "workers", "work.>")
    assert await consumer.fetch(1, 0.1) == []
    nats_server.kill()
    began = asyncio.get_running_loop().time()
    await bus.close()
    assert asyncio.get_running_loop().time() - began < 5
