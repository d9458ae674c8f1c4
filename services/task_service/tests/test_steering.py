"""Stop, resume, delete: one outcome, whatever happens at the same time."""

import asyncio

import pytest

from servicekit.errors import FailedPrecondition, NotFound
from services.task_service.tests.harness import Client, Service, crashed
from tunesmith.events.v1 import fact_pb2
from tunesmith.task.v1 import task_pb2, task_service_pb2

STOPPED, COMPLETED = task_pb2.STATE_STOPPED, task_pb2.STATE_COMPLETED


async def test_a_pending_task_stops_at_once(service: Service, alice: Client) -> None:
    task = await alice.create()
    await service.send_outbox()
    assert (await alice.stop(task.id)).state == STOPPED
    with pytest.raises(FailedPrecondition) as caught:
        await service.worker().claim(task.id)
    assert caught.value.reason == "TASK_ENDED"


async def test_a_running_task_saves_and_stops(service: Service, alice: Client) -> None:
    task = await alice.create()
    attempt = await service.worker().claim(task.id)
    assert (await alice.stop(task.id)).state == task_pb2.STATE_STOPPING
    assert await attempt.heartbeat() == task_service_pb2.DIRECTIVE_STOP_AND_SAVE
    await attempt.say(checkpoint_saved=attempt.checkpoint(7))
    await attempt.say(stopped=fact_pb2.AttemptStopped(checkpoint_step=7))
    await service.record_facts()
    seen = await alice.get(task.id)
    assert (seen.state, seen.HasField("end_time"), seen.HasField("error")) == (STOPPED, True, False)
    with pytest.raises(FailedPrecondition, match="not running"):
        await alice.stop(task.id)
    assert (await service.event_types(task.id))[-3:] == ["task.stopping", "checkpoint.saved", "task.stopped"]


async def test_discard_reaches_the_worker(service: Service, alice: Client) -> None:
    task = await alice.create()
    attempt = await service.worker().claim(task.id)
    await alice.stop(task.id, discard=True)
    assert await attempt.heartbeat() == task_service_pb2.DIRECTIVE_STOP_AND_DISCARD


async def test_a_stop_that_comes_too_late_changes_nothing(service: Service, alice: Client) -> None:
    task = await alice.create()
    attempt = await service.worker().claim(task.id)
    await attempt.say(completed=attempt.completed())
    await alice.stop(task.id)
    await service.record_facts()
    assert (await alice.get(task.id)).state == COMPLETED


@pytest.mark.parametrize("round_", range(6))
async def test_stop_racing_completion_has_one_outcome(service: Service, alice: Client, round_: int) -> None:
    task = await alice.create()
    attempt = await service.worker().claim(task.id)
    await attempt.say(completed=attempt.completed())
    await attempt.say(stopped=fact_pb2.AttemptStopped())
    results = await asyncio.gather(alice.stop(task.id), service.record_facts(), return_exceptions=True)
    assert all(result is None or isinstance(result, task_pb2.Task | FailedPrecondition) for result in results)
    await service.record_facts()
    assert (await alice.get(task.id)).state == COMPLETED
    finals = [item for item in await service.event_types(task.id) if item in ("task.completed", "task.stopped")]
    assert finals == ["task.completed"]


async def test_a_crash_while_stopping_ends_as_stopped(service: Service, alice: Client) -> None:
    task = await alice.create()
    attempt = await service.worker().claim(task.id)
    await alice.stop(task.id)
    await attempt.say(failed=crashed())
    await service.record_facts()
    seen = await alice.get(task.id)
    assert (seen.state, seen.error.reason) == (STOPPED, "CRASHED")


async def stopped_at(service: Service, alice: Client, *steps: int) -> task_pb2.Task:
    task = await alice.create()
    attempt = await service.worker().claim(task.id)
    for step in steps:
        await attempt.say(progressed=task_pb2.Progress(step=step, total_steps=100, percent=step))
        await attempt.say(checkpoint_saved=attempt.checkpoint(step))
    await alice.stop(task.id)
    await attempt.say(stopped=fact_pb2.AttemptStopped(checkpoint_step=steps[-1] if steps else 0))
    await service.record_facts()
    return await alice.get(task.id)


async def test_resume_goes_on_from_the_newest_checkpoint(service: Service, alice: Client) -> None:
    task = await stopped_at(service, alice, 10, 20)
    resumed = await alice.resume(task.id)
    assert (resumed.state, resumed.run, resumed.attempt) == (task_pb2.STATE_PENDING, 2, 1)
    assert (resumed.progress.step, resumed.progress.percent) == (20, 20)
    assert not resumed.HasField("end_time")
    await service.send_outbox()
    assert await service.queued(task) == 2
    claim = (await service.worker().claim(task.id, 2)).claim
    assert [item.step for item in claim.resume_from] == [20, 10]
    assert not claim.resume_exact
    assert "task.resumed" in await service.event_types(task.id)


async def test_resume_from_a_named_checkpoint_takes_that_one_alone(service: Service, alice: Client) -> None:
    task = await stopped_at(service, alice, 10, 20)
    await alice.resume(task.id, 10)
    attempt = await service.worker().claim(task.id, 2)
    assert ([item.step for item in attempt.claim.resume_from], attempt.claim.resume_exact) == ([10], True)
    await attempt.say(checkpoint_saved=attempt.checkpoint(15))
    await attempt.say(failed=crashed())
    await service.record_facts()
    again = (await service.worker().claim(task.id, 3)).claim
    assert ([item.step for item in again.resume_from], again.resume_exact) == ([15, 10], False)
    listed = [(item.run, item.step) for item in await alice.checkpoints(task.id)]
    assert listed == [(1, 10), (1, 20), (2, 15)]


async def test_resume_from_a_checkpoint_that_is_not_there(service: Service, alice: Client) -> None:
    task = await stopped_at(service, alice, 10)
    with pytest.raises(NotFound, match="step 11"):
        await alice.resume(task.id, 11)
    assert (await alice.get(task.id)).state == STOPPED


async def test_a_failed_task_has_all_its_attempts_again_when_resumed(service: Service, alice: Client) -> None:
    task = await alice.create()
    attempt = await service.worker().claim(task.id)
    await attempt.say(failed=crashed(retryable=False))
    await service.record_facts()
    resumed = await alice.resume(task.id)
    assert not resumed.HasField("error")
    for number in (2, 3, 4):
        attempt = await service.worker().claim(task.id, number)
        await attempt.say(failed=crashed())
        await service.record_facts()
    assert (await alice.get(task.id)).state == task_pb2.STATE_FAILED


@pytest.mark.parametrize("state", ["pending", "running", "completed"])
async def test_only_stopped_and_failed_tasks_resume(service: Service, alice: Client, state: str) -> None:
    task = await alice.create()
    if state != "pending":
        attempt = await service.worker().claim(task.id)
        if state == "completed":
            await attempt.say(completed=attempt.completed())
            await service.record_facts()
    with pytest.raises(FailedPrecondition, match="only a STOPPED or FAILED"):
        await alice.resume(task.id)


async def test_resumed_twice_at_once_is_one_run(service: Service, alice: Client) -> None:
    task = await stopped_at(service, alice)
    results = await asyncio.gather(*(alice.resume(task.id) for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(result, task_pb2.Task) for result in results) == 1
    assert (await alice.get(task.id)).run == 2


async def test_a_deleted_task_is_gone(service: Service, alice: Client) -> None:
    task = await alice.create()
    await alice.delete(task.id)
    with pytest.raises(NotFound):
        await alice.get(task.id)
    assert (await alice.page(with_total=True)).total_size == 0
    assert (await service.event_types(task.id))[-1] == "task.deleted"
    with pytest.raises(NotFound):
        await alice.delete(task.id)
    with pytest.raises(FailedPrecondition):
        await service.worker().claim(task.id)


async def test_a_running_task_is_deleted_by_force(service: Service, alice: Client) -> None:
    task = await alice.create()
    attempt = await service.worker().claim(task.id)
    with pytest.raises(FailedPrecondition, match="stop it first"):
        await alice.delete(task.id)
    await alice.delete(task.id, force=True)
    assert await attempt.heartbeat() == task_service_pb2.DIRECTIVE_ABANDON
    await attempt.say(checkpoint_saved=attempt.checkpoint(5))
    await attempt.say(completed=attempt.completed())
    await service.record_facts()
    types = await service.event_types(task.id)
    assert types == ["task.created", "task.started", "task.deleted"]
    with pytest.raises(NotFound):
        await alice.get(task.id)


async def test_delete_racing_completion_has_one_outcome(service: Service, alice: Client) -> None:
    for _ in range(4):
        task = await alice.create()
        attempt = await service.worker().claim(task.id)
        await attempt.say(completed=attempt.completed())
        await asyncio.gather(alice.delete(task.id, force=True), service.record_facts())
        with pytest.raises(NotFound):
            await alice.get(task.id)
        types = await service.event_types(task.id)
        assert types.count("task.deleted") == 1
        assert types[-1] == "task.deleted"
