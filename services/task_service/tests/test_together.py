"""All duties at work: the broker dies, the queue is deleted, the relay stops half way, the database is full."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import nats
import pytest

from servicekit import subjects
from servicekit.bus import EventBus, Outgoing
from servicekit.errors import FailedPrecondition, Unavailable
from services.task_service.tests.harness import Client, Service, running_service
from tests.support.nats import NatsServer
from tests.support.waiting import eventually
from tunesmith.events.v1 import fact_pb2
from tunesmith.task.v1 import task_pb2

FAST = {"reconcile_seconds": 0.2, "dispatch_grace_seconds": 0.2}
COMPLETED = task_pb2.STATE_COMPLETED


@pytest.fixture
async def own_service(tmp_path: Path, database_url: str, nats_server: NatsServer) -> AsyncIterator[Service]:
    """A task service on a broker of the test's own."""
    async with running_service(tmp_path, database_url, nats_server.url) as service:
        yield service


async def work_off(service: Service, name: str = "w1") -> None:
    """A worker that completes whatever it gets from the queue."""
    worker = service.worker(name)
    consumer = service.bus.consumer(subjects.WORK, "finetune-default", "work.finetune.default.>", ack_wait=30.0)
    while True:
        for message in await consumer.fetch(1):
            item = fact_pb2.WorkItem.FromString(message.data)
            try:
                attempt = await worker.claim(item.task_id, item.attempt)
            except FailedPrecondition:
                await message.term()
                continue
            await attempt.say(metrics=attempt.metrics(1, loss=1.0))
            await attempt.say(completed=attempt.completed())
            await message.ack_sync()


async def test_tasks_go_through_by_themselves(service: Service, alice: Client) -> None:
    async with service.running():
        working = asyncio.create_task(work_off(service))
        first = await alice.create()
        second = await alice.create(depends_on=[first.id])
        await service.state(alice, second.id, COMPLETED)
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
    assert (await service.event_types(second.id))[-1] == "task.completed"


async def test_a_task_accepted_while_the_broker_is_down_is_done_when_it_is_back(
    own_service: Service, nats_server: NatsServer
) -> None:
    alice = own_service.client()
    async with own_service.running(FAST):
        nats_server.kill()
        task = await alice.create()
        assert (await alice.get(task.id)).state == task_pb2.STATE_PENDING
        nats_server.restart()
        working = asyncio.create_task(work_off(own_service))
        await own_service.state(alice, task.id, COMPLETED, 30)
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
    assert (await own_service.event_types(task.id)).count("task.started") == 1


async def test_a_deleted_queue_is_rebuilt_from_the_database(own_service: Service, nats_server: NatsServer) -> None:
    alice = own_service.client()
    tasks = [await alice.create() for _ in range(5)]
    await own_service.send_outbox()
    client = await nats.connect(nats_server.url)
    for stream in (subjects.WORK, subjects.FACTS, subjects.EVENTS):
        await client.jetstream().delete_stream(stream)
    await client.close()
    async with own_service.running(FAST):
        working = asyncio.create_task(work_off(own_service))
        for task in tasks:
            await own_service.state(alice, task.id, COMPLETED, 30)
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def test_a_relay_that_dies_after_publishing_sends_no_second_task(service: Service, alice: Client) -> None:
    task = await alice.create()
    _, before = await service.bus.sequences(subjects.WORK)

    class Dying(EventBus):
        """Publishes, and is gone before it can say so."""

        async def publish_all(self, messages: list[Outgoing]) -> None:  # type: ignore[override]
            await service.bus.publish_all(messages)
            raise Unavailable("killed here")

    from servicekit.outbox import Relay

    with pytest.raises(Unavailable):
        await Relay(service.core.outbox, service.core.database.sessions, Dying()).relay_once()
    await service.send_outbox()
    assert (await service.bus.sequences(subjects.WORK))[1] == before + 1
    assert await service.event_types(task.id) == ["task.created"]


async def test_a_late_duplicate_of_a_queue_message_starts_nothing(service: Service, alice: Client) -> None:
    """The broker has forgotten the message id, so the message is in the queue twice."""
    task = await alice.create()
    await service.send_outbox()
    subject = subjects.work("finetune", "default", task.id)
    await service.bus.publish(subject, fact_pb2.WorkItem(task_id=task.id, attempt=1).SerializeToString())
    async with service.running():
        working = asyncio.create_task(work_off(service))
        await service.state(alice, task.id, COMPLETED)

        async def dropped() -> bool:
            return await service.queued(task) == 0

        await eventually(dropped)
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
    types = await service.event_types(task.id)
    assert (types.count("task.started"), types.count("task.completed")) == (1, 1)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_full_database_refuses_clearly_and_goes_on_reading(service: Service, alice: Client) -> None:
    task = await alice.create()
    attempt = await service.worker().claim(task.id)
    async with service.core.database.engine.begin() as connection:
        pages = (await connection.exec_driver_sql("PRAGMA page_count")).scalar_one()

    def limit(connection, _) -> None:  # type: ignore[no-untyped-def]
        connection.execute(f"PRAGMA max_page_count={pages}")

    from sqlalchemy import event

    await service.core.database.engine.dispose()
    event.listen(service.core.database.engine.sync_engine, "connect", limit)
    with pytest.raises(Unavailable, match="database"):
        for _ in range(200):
            await alice.create(description="x" * 9000)
    assert (await alice.get(task.id)).state == task_pb2.STATE_RUNNING
    await attempt.say(
        metrics=fact_pb2.MetricsReported(
            points=[task_pb2.MetricPoint(name=f"m{index}", step=index, value=1.0) for index in range(20_000)]
        )
    )
    messages = await service.fetch_facts()
    await service.facts.handle(messages)
    event.remove(service.core.database.engine.sync_engine, "connect", limit)
    await service.core.database.engine.dispose()
    await service.record_facts()
    assert len((await alice.get(task.id)).metrics) == 1000
