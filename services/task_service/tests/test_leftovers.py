"""What attempts that did not complete have stored and nobody refers to goes; checkpoints and results stay."""

import pytest
from sqlalchemy import update

from servicekit import subjects
from services.task_service.tests.harness import Attempt, Client, Service, crashed
from task_service.database.models import GarbageRow, TaskRow
from tunesmith.task.v1.task_pb2 import STATE_COMPLETED, STATE_PENDING

FOLDERS = ("checkpoint-10", "checkpoint-20", "output")


async def begun(service: Service, client: Client) -> Attempt:
    """An attempt that has stored two checkpoints and its output, and told of the first checkpoint alone."""
    task = await client.create()
    await service.send_outbox()
    attempt = await service.worker().claim(task.id)
    await store(service, attempt)
    await attempt.say(checkpoint_saved=attempt.checkpoint(10))
    return attempt


async def store(service: Service, attempt: Attempt) -> None:
    for folder in FOLDERS:
        await service.objects.put_bytes(f"tasks/{attempt.task_id}/attempts/{attempt.number}/{folder}/a/b", b"content")


async def stored(service: Service, task_id: str) -> list[str]:
    """Attempt and folder of everything that is stored of a task."""
    keys = [item.key async for item in service.objects.list(f"tasks/{task_id}/")]
    return sorted({"/".join(key.split("/")[3:5]) for key in keys})


async def lose(service: Service, attempt: Attempt) -> None:
    """Its worker is silent for longer than the lease, and no message will bring another."""
    task = attempt.claim.task
    await service.bus.purge(subjects.WORK, subjects.work("finetune", task.pool, task.id))
    async with service.core.database.sessions.begin() as session:
        await session.execute(update(TaskRow).where(TaskRow.id == task.id).values(heartbeat_time=0))
    await service.reconciler.reconcile_once()
    service.time += service.settings.lease_seconds
    await service.reconciler.reconcile_once()


async def collect(service: Service) -> None:
    """Collects what is due some day."""
    await service.core.database.transaction(lambda session: session.execute(update(GarbageRow).values(due_time=0)))
    while await service.garbage.collect_once():
        pass


@pytest.mark.parametrize("ending", [{"failed": crashed()}, {"failed": crashed(retryable=False)}, {"released": {}}])
async def test_what_an_attempt_did_not_tell_of_goes(service: Service, alice: Client, ending: dict[str, object]) -> None:
    attempt = await begun(service, alice)
    await attempt.say(**ending)
    await service.record_facts()
    await collect(service)
    assert await stored(service, attempt.task_id) == ["1/checkpoint-10"]


async def test_a_stopped_attempt_keeps_its_checkpoint(service: Service, alice: Client) -> None:
    attempt = await begun(service, alice)
    await alice.stop(attempt.task_id)
    await attempt.say(stopped={"checkpoint_step": 10})
    await service.record_facts()
    await collect(service)
    assert await stored(service, attempt.task_id) == ["1/checkpoint-10"]


async def test_a_rejected_checkpoint_is_kept_for_whoever_looks_into_it(service: Service, alice: Client) -> None:
    attempt = await begun(service, alice)
    await attempt.say(checkpoint_rejected={"prefix": attempt.checkpoint(10).prefix, "step": 10, "reason": "differs"})
    await attempt.say(failed=crashed())
    await service.record_facts()
    await collect(service)
    assert await stored(service, attempt.task_id) == ["1/checkpoint-10"]


async def test_it_waits_for_a_worker_that_may_still_write(service: Service, alice: Client) -> None:
    attempt = await begun(service, alice)
    await attempt.say(failed=crashed())
    await service.record_facts()
    assert await service.garbage.collect_once() == 0


async def test_the_next_attempts_result_stays(service: Service, alice: Client) -> None:
    first = await begun(service, alice)
    await first.say(failed=crashed())
    await service.record_facts()
    second = await service.worker().claim(first.task_id, 2)
    await store(service, second)
    await collect(service)
    assert await stored(service, first.task_id) == ["1/checkpoint-10", *(f"2/{folder}" for folder in FOLDERS)]
    await second.say(completed=second.completed())
    await service.record_facts()
    await collect(service)
    assert "2/output" in await stored(service, first.task_id)


async def test_what_a_worker_left_whose_task_another_took_over_goes(service: Service, alice: Client) -> None:
    first = await begun(service, alice)
    await service.record_facts()
    async with service.core.database.sessions.begin() as session:
        await session.execute(update(TaskRow).where(TaskRow.id == first.task_id).values(heartbeat_time=0))
    second = await service.worker("w2").claim(first.task_id)
    assert second.number == 2
    await collect(service)
    assert await stored(service, first.task_id) == ["1/checkpoint-10"]


async def test_the_result_of_an_attempt_that_was_taken_for_lost_stays(service: Service, alice: Client) -> None:
    attempt = await begun(service, alice)
    await service.record_facts()
    await lose(service, attempt)
    assert (await alice.get(attempt.task_id)).state == STATE_PENDING
    await attempt.say(completed=attempt.completed())
    await service.record_facts()
    assert (await alice.get(attempt.task_id)).state == STATE_COMPLETED
    await collect(service)
    assert await stored(service, attempt.task_id) == ["1/checkpoint-10", "1/output"]
