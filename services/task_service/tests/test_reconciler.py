"""What the database says and the queue has lost is put back; what is well is left alone."""

from servicekit import subjects
from services.task_service.tests.harness import Attempt, Client, Service
from task_service.database.models import TaskRow
from tunesmith.events.v1 import fact_pb2
from tunesmith.task.v1 import task_pb2

LEASE = 30.0


async def forget_message(service: Service, task: task_pb2.Task) -> None:
    await service.send_outbox()
    await service.bus.purge(subjects.WORK, subjects.work("finetune", task.pool, task.id))
    assert await service.queued(task) == 0


async def silent(service: Service, alice: Client) -> Attempt:
    """An attempt whose worker was last heard of a minute ago, and whose message is gone."""
    task = await alice.create()
    attempt = await service.worker().claim(task.id)
    await forget_message(service, task)
    async with service.core.database.sessions.begin() as session:
        row = await session.get(TaskRow, task.number)
        assert row is not None
        row.heartbeat_time -= 60_000_000
    return attempt


async def pass_a_lease(service: Service) -> None:
    """Two passes, a lease apart on the reconciler's own clock."""
    await service.reconciler.reconcile_once()
    service.time += LEASE
    await service.reconciler.reconcile_once()
    await service.send_outbox()


async def test_a_vanished_message_is_sent_again(service: Service, alice: Client) -> None:
    task = await alice.create()
    await forget_message(service, task)
    await service.reconciler.reconcile_once()
    await service.send_outbox()
    assert await service.queued(task) == 1
    assert (await service.worker().claim(task.id)).number == 1


async def test_a_message_that_waits_is_not_sent_twice(service: Service, alice: Client) -> None:
    task = await alice.create()
    await service.send_outbox()
    _, before = await service.bus.sequences(subjects.WORK)
    for _ in range(3):
        await service.reconciler.reconcile_once()
    await service.send_outbox()
    assert (await service.bus.sequences(subjects.WORK))[1] == before
    assert await service.queued(task) == 1


async def test_a_message_on_its_way_is_not_sent_twice(service: Service, alice: Client) -> None:
    task = await alice.create()
    _, before = await service.bus.sequences(subjects.WORK)
    await service.reconciler.reconcile_once()
    await service.send_outbox()
    assert (await service.bus.sequences(subjects.WORK))[1] == before + 1
    assert await service.queued(task) == 1


async def test_a_silent_attempt_without_a_message_is_given_up(service: Service, alice: Client) -> None:
    attempt = await silent(service, alice)
    await pass_a_lease(service)
    seen = await alice.get(attempt.task_id)
    assert (seen.state, seen.error.reason) == (task_pb2.STATE_PENDING, "WORKER_LOST")
    assert "task.retried" in await service.event_types(attempt.task_id)
    again = await service.worker("w2").claim(attempt.task_id, 2)
    assert again.number == 2


async def test_a_clock_put_forward_gives_nothing_up(service: Service, alice: Client) -> None:
    attempt = await silent(service, alice)
    for _ in range(3):
        await service.reconciler.reconcile_once()
    assert (await alice.get(attempt.task_id)).state == task_pb2.STATE_RUNNING


async def test_a_heartbeat_in_between_keeps_the_attempt(service: Service, alice: Client) -> None:
    attempt = await silent(service, alice)
    await service.reconciler.reconcile_once()
    await attempt.heartbeat()
    service.time += LEASE
    await service.reconciler.reconcile_once()
    assert (await alice.get(attempt.task_id)).state == task_pb2.STATE_RUNNING


async def test_a_message_in_the_queue_will_bring_the_next_worker(service: Service, alice: Client) -> None:
    attempt = await silent(service, alice)
    item = fact_pb2.WorkItem(task_id=attempt.task_id, attempt=1)
    await service.bus.publish(subjects.work("finetune", "default", attempt.task_id), item.SerializeToString())
    await pass_a_lease(service)
    assert (await alice.get(attempt.task_id)).state == task_pb2.STATE_RUNNING


async def test_facts_that_wait_are_heard_first(service: Service, alice: Client) -> None:
    attempt = await silent(service, alice)
    await attempt.say(completed=attempt.completed())
    await pass_a_lease(service)
    assert (await alice.get(attempt.task_id)).state == task_pb2.STATE_RUNNING
    await service.record_facts()
    assert (await alice.get(attempt.task_id)).state == task_pb2.STATE_COMPLETED


async def test_the_result_of_a_lost_attempt_counts_until_another_begins(service: Service, alice: Client) -> None:
    attempt = await silent(service, alice)
    await pass_a_lease(service)
    await attempt.say(completed=attempt.completed())
    await service.record_facts()
    assert (await alice.get(attempt.task_id)).state == task_pb2.STATE_COMPLETED


async def test_a_stop_that_no_worker_hears_ends_all_the_same(service: Service, alice: Client) -> None:
    attempt = await silent(service, alice)
    item = fact_pb2.WorkItem(task_id=attempt.task_id, attempt=1)
    await service.bus.publish(subjects.work("finetune", "default", attempt.task_id), item.SerializeToString())
    await alice.stop(attempt.task_id)
    await pass_a_lease(service)
    assert (await alice.get(attempt.task_id)).state == task_pb2.STATE_STOPPED


async def test_workers_that_vanish_use_up_the_attempts(service: Service, alice: Client) -> None:
    attempt = await silent(service, alice)
    for number in (2, 3, 4):
        await pass_a_lease(service)
        if number == 4:
            break
        attempt = await service.worker().claim(attempt.task_id, number)
        task = await alice.get(attempt.task_id)
        await service.bus.purge(subjects.WORK, subjects.work("finetune", task.pool, task.id))
        async with service.core.database.sessions.begin() as session:
            row = await session.get(TaskRow, task.number)
            assert row is not None
            row.heartbeat_time -= 60_000_000
    seen = await alice.get(attempt.task_id)
    assert (seen.state, seen.error.reason) == (task_pb2.STATE_FAILED, "WORKER_LOST")


async def test_a_dispatch_that_a_changed_clock_put_far_away_is_sent(service: Service, alice: Client) -> None:
    task = await alice.create()
    await forget_message(service, task)
    async with service.core.database.sessions.begin() as session:
        row = await session.get(TaskRow, task.number)
        assert row is not None
        row.dispatch_time += 3600 * 1_000_000
    await service.reconciler.reconcile_once()
    await service.send_outbox()
    assert await service.queued(task) == 1
