"""Tasks that wait for others."""

import asyncio
from itertools import pairwise

import pytest

from servicekit.errors import FailedPrecondition, InvalidArgument
from services.task_service.tests.harness import Client, Service, crashed
from task_service.database.models import TaskRow
from tunesmith.task.v1 import task_pb2

PENDING, FAILED = task_pb2.STATE_PENDING, task_pb2.STATE_FAILED


async def finish(service: Service, task: task_pb2.Task, attempt: int = 1, good: bool = True) -> None:
    running = await service.worker().claim(task.id, attempt)
    if good:
        await running.say(completed=running.completed())
    else:
        await running.say(failed=crashed(retryable=False))
    await service.record_facts()


async def test_a_chain_runs_one_after_the_other(service: Service, alice: Client) -> None:
    first = await alice.create()
    second = await alice.create(depends_on=[first.id])
    third = await alice.create(depends_on=[second.id])
    await service.send_outbox()
    assert [await service.queued(task) for task in (first, second, third)] == [1, 0, 0]
    with pytest.raises(FailedPrecondition):
        await service.worker().claim(second.id)
    await finish(service, first)
    await service.send_outbox()
    assert [await service.queued(task) for task in (second, third)] == [1, 0]
    await finish(service, second)
    await service.send_outbox()
    assert await service.queued(third) == 1


async def test_a_task_waits_for_all_it_depends_on(service: Service, alice: Client) -> None:
    left, right = await alice.create(), await alice.create()
    joined = await alice.create(depends_on=[left.id, right.id])
    await finish(service, left)
    await service.send_outbox()
    assert await service.queued(joined) == 0
    await finish(service, right)
    await service.send_outbox()
    assert await service.queued(joined) == 1


async def test_two_that_complete_at_once_release_what_waits_for_both(service: Service, alice: Client) -> None:
    for _ in range(4):
        left, right = await alice.create(), await alice.create()
        joined = await alice.create(depends_on=[left.id, right.id])
        attempts = [await service.worker().claim(task.id) for task in (left, right)]
        for attempt in attempts:
            await attempt.say(completed=attempt.completed())
        messages = await service.fetch_facts()
        await asyncio.gather(*(service.facts.handle([message]) for message in messages))
        await service.send_outbox()
        assert await service.queued(joined) == 1


async def test_a_completed_dependency_does_not_delay(service: Service, alice: Client) -> None:
    first = await alice.create()
    await finish(service, first)
    second = await alice.create(depends_on=[first.id])
    await service.send_outbox()
    assert await service.queued(second) == 1


async def test_failure_reaches_the_end_of_a_chain(service: Service, alice: Client) -> None:
    tasks = [await alice.create()]
    for _ in range(30):
        tasks.append(await alice.create(depends_on=[tasks[-1].id]))
    await finish(service, tasks[0], good=False)
    for before, task in pairwise(tasks):
        seen = await alice.get(task.id)
        assert (seen.state, seen.error.reason) == (FAILED, "DEPENDENCY_FAILED")
        assert before.id in seen.error.message
    assert (await service.event_types(tasks[-1].id)) == ["task.created", "task.failed"]


@pytest.mark.parametrize("how", ["stop", "delete"])
async def test_stopping_or_deleting_fails_what_waits(service: Service, alice: Client, how: str) -> None:
    first = await alice.create()
    second = await alice.create(depends_on=[first.id])
    await (alice.stop(first.id) if how == "stop" else alice.delete(first.id))
    seen = await alice.get(second.id)
    assert (seen.state, seen.error.reason) == (FAILED, "DEPENDENCY_FAILED")


async def test_an_ended_dependency_is_refused_at_once(alice: Client) -> None:
    first = await alice.create()
    await alice.stop(first.id)
    with pytest.raises(InvalidArgument, match="STOPPED"):
        await alice.create(depends_on=[first.id])


async def test_resuming_needs_the_dependency_first(service: Service, alice: Client) -> None:
    first = await alice.create()
    second = await alice.create(depends_on=[first.id])
    await alice.stop(first.id)
    with pytest.raises(FailedPrecondition, match=first.id):
        await alice.resume(second.id)
    await alice.resume(first.id)
    assert (await alice.resume(second.id)).state == PENDING
    await service.send_outbox()
    assert await service.queued(second) == 0
    await finish(service, first, 2)
    await service.send_outbox()
    assert await service.queued(second) == 2


async def test_creating_while_the_dependency_completes_never_waits_for_ever(service: Service, alice: Client) -> None:
    for _ in range(5):
        first = await alice.create()
        attempt = await service.worker().claim(first.id)
        await attempt.say(completed=attempt.completed())
        second, _ = await asyncio.gather(alice.create(depends_on=[first.id]), service.record_facts())
        await service.send_outbox()
        assert await service.queued(second) == 1


async def test_the_reconciler_finds_what_was_forgotten(service: Service, alice: Client) -> None:
    good, bad = await alice.create(), await alice.create()
    waits_for_good = await alice.create(depends_on=[good.id])
    waits_for_bad = await alice.create(depends_on=[bad.id])
    waits_for_both = await alice.create(depends_on=[good.id, bad.id])
    async with service.core.database.sessions.begin() as session:
        for task, state in ((good, task_pb2.STATE_COMPLETED), (bad, FAILED)):
            row = await session.get(TaskRow, task.number)
            assert row is not None
            row.state = state
    await service.reconciler.reconcile_once()
    await service.send_outbox()
    assert await service.queued(waits_for_good) == 1
    for task in (waits_for_bad, waits_for_both):
        assert (await alice.get(task.id)).error.reason == "DEPENDENCY_FAILED"


async def test_a_waiting_task_is_left_alone_by_the_reconciler(service: Service, alice: Client) -> None:
    first = await alice.create()
    second = await alice.create(depends_on=[first.id])
    await service.reconciler.reconcile_once()
    assert (await alice.get(second.id)).state == PENDING
    assert await service.event_types(second.id) == ["task.created"]
