"""Workers: claims, leases, fencing, attempts."""

import asyncio

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from servicekit.errors import Aborted, FailedPrecondition, PermissionDenied
from servicekit.identity import Role
from services.task_service.tests.harness import Client, Service, Worker, crashed, running_service
from task_service.database.models import AttemptRow, TaskRow
from tests.support.nats import NatsServer
from tests.support.waiting import eventually
from tunesmith.events.v1 import fact_pb2
from tunesmith.task.v1 import task_pb2, task_service_pb2

CONTINUE = task_service_pb2.DIRECTIVE_CONTINUE
ABANDON = task_service_pb2.DIRECTIVE_ABANDON


async def expire_lease(service: Service, task_id: str) -> None:
    """As if the last heartbeat had come a minute ago."""
    async with service.core.database.sessions.begin() as session:
        row = await find(session, task_id)
        row.heartbeat_time -= 60_000_000


async def find(session: AsyncSession, task_id: str) -> TaskRow:
    return (await session.scalars(select(TaskRow).where(TaskRow.id == task_id))).one()


async def test_a_worker_claims_runs_and_completes_a_task(service: Service, alice: Client) -> None:
    task = await alice.create()
    attempt = await service.worker().claim(task.id)
    assert attempt.claim.task.state == task_pb2.STATE_RUNNING
    assert (attempt.number, attempt.claim.task.worker, attempt.claim.lease_seconds) == (1, "w1", 30.0)
    assert attempt.claim.task.spec.finetune.training.seed == 42
    assert list(attempt.claim.resume_from) == []
    await attempt.say(child_started=fact_pb2.ChildStarted(pid=42))
    await attempt.say(progressed=task_pb2.Progress(step=5, total_steps=10, percent=50, phase="training"))
    await attempt.say(metrics=attempt.metrics(5, loss=2.5, learning_rate=1e-4))
    await attempt.say(checkpoint_saved=attempt.checkpoint(5))
    await service.record_facts()
    seen = await alice.get(task.id)
    assert (seen.pid, seen.progress.step, seen.progress.percent) == (42, 5, 50)
    assert dict(seen.metrics) == {"loss": 2.5, "learning_rate": 1e-4}
    await attempt.say(completed=attempt.completed())
    await service.record_facts()
    done = await alice.get(task.id)
    assert done.state == task_pb2.STATE_COMPLETED
    assert (done.output_dir, done.progress.percent, done.pid) == (f"/out/{task.id}", 100, 0)
    assert done.HasField("end_time")
    assert not done.HasField("error")
    assert await service.event_types(task.id) == [
        "task.created",
        "task.started",
        "metrics.logged",
        "task.progressed",
        "checkpoint.saved",
        "task.completed",
    ]


@pytest.mark.parametrize("role", [Role.USER, Role.ADMIN])
async def test_users_are_no_workers(service: Service, alice: Client, role: Role) -> None:
    task = await alice.create()
    impostor = Worker(service.client("alice", role), service.bus, "w1")
    with pytest.raises(PermissionDenied):
        await impostor.claim(task.id)
    request = task_service_pb2.HeartbeatTaskRequest(task_id=task.id, attempt=1, worker="w1")
    with pytest.raises(PermissionDenied):
        await impostor.client.stub.HeartbeatTask(request)


async def test_an_unknown_task_is_dropped_from_the_queue(service: Service) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        await service.worker().claim("nothing")
    assert caught.value.reason == "TASK_ENDED"


async def test_a_stale_message_is_dropped(service: Service, alice: Client) -> None:
    task = await alice.create()
    with pytest.raises(FailedPrecondition) as caught:
        await service.worker().claim(task.id, 7)
    assert caught.value.reason == "STALE_MESSAGE"


async def test_one_of_many_workers_gets_the_task(service: Service, alice: Client) -> None:
    task = await alice.create()
    workers = [service.worker(f"w{index}") for index in range(8)]
    results = await asyncio.gather(*(worker.claim(task.id) for worker in workers), return_exceptions=True)
    winners = [result for result in results if not isinstance(result, BaseException)]
    assert len(winners) == 1
    assert all(isinstance(result, Aborted) for result in results if result is not winners[0])
    assert (await service.event_types(task.id)).count("task.started") == 1


async def test_a_redelivered_message_is_refused_while_the_heartbeat_is_fresh(service: Service, alice: Client) -> None:
    task = await alice.create()
    attempt = await service.worker("w1").claim(task.id)
    with pytest.raises(Aborted) as caught:
        await service.worker("w2").claim(task.id)
    assert caught.value.reason == "LEASE_HELD"
    assert await attempt.heartbeat() == CONTINUE


async def test_claiming_twice_is_harmless(service: Service, alice: Client) -> None:
    task = await alice.create()
    worker = service.worker()
    first, second = await worker.claim(task.id), await worker.claim(task.id)
    assert first.claim.task.attempt == second.claim.task.attempt == 1
    assert (await service.event_types(task.id)).count("task.started") == 1


async def test_heartbeats_keep_the_process_id(service: Service, alice: Client) -> None:
    task = await alice.create()
    attempt = await service.worker().claim(task.id)
    assert await attempt.heartbeat(pid=99) == CONTINUE
    assert (await alice.get(task.id)).pid == 99


async def test_a_silent_worker_is_fenced_by_the_next(service: Service, alice: Client) -> None:
    task = await alice.create()
    old = await service.worker("w1").claim(task.id)
    await old.say(checkpoint_saved=old.checkpoint(10))
    await old.say(metrics=old.metrics(10, loss=3.0))
    await service.record_facts()
    await expire_lease(service, task.id)
    new = await service.worker("w2").claim(task.id)
    assert new.number == 2
    assert [checkpoint.step for checkpoint in new.claim.resume_from] == [10]
    assert new.claim.task.error.reason == "WORKER_LOST"
    assert await old.heartbeat() == ABANDON
    await old.say(metrics=old.metrics(11, loss=99.0))
    await old.say(checkpoint_saved=old.checkpoint(20))
    await old.say(completed=old.completed())
    await service.record_facts()
    seen = await alice.get(task.id)
    assert (seen.state, seen.worker, dict(seen.metrics)) == (task_pb2.STATE_RUNNING, "w2", {"loss": 3.0})
    assert [checkpoint.step for checkpoint in await alice.checkpoints(task.id)] == [10]
    async with service.core.database.sessions() as session:
        lost = await session.get(AttemptRow, (task.number, 1))
        assert lost is not None
        assert (lost.outcome, lost.reason) == ("lost", "WORKER_LOST")


async def test_no_takeover_while_the_last_workers_facts_wait(service: Service, alice: Client) -> None:
    """The worker finished while this service was down; its work must not be done again."""
    task = await alice.create()
    old = await service.worker("w1").claim(task.id)
    await old.say(completed=old.completed())
    await expire_lease(service, task.id)
    with pytest.raises(Aborted) as caught:
        await service.worker("w2").claim(task.id)
    assert caught.value.reason == "FACTS_WAITING"
    await service.record_facts()
    with pytest.raises(FailedPrecondition):
        await service.worker("w2").claim(task.id)
    assert (await alice.get(task.id)).state == task_pb2.STATE_COMPLETED


async def test_a_crash_loop_ends_with_the_last_reason(service: Service, alice: Client) -> None:
    task = await alice.create()
    for number in (1, 2, 3):
        attempt = await service.worker(f"w{number}").claim(task.id, number)
        await attempt.say(failed=crashed("CRASHED" if number < 3 else "OUT_OF_MEMORY"))
        await service.record_facts()
        seen = await alice.get(task.id)
        assert seen.error.reason == ("CRASHED" if number < 3 else "OUT_OF_MEMORY")
        assert seen.state == (task_pb2.STATE_PENDING if number < 3 else task_pb2.STATE_FAILED)
    assert "gave up after 3 attempts" in seen.error.message
    types = await service.event_types(task.id)
    assert (types.count("task.retried"), types.count("task.failed")) == (2, 1)
    with pytest.raises(FailedPrecondition):
        await service.worker().claim(task.id, 4)


async def test_retries_are_queued_after_a_pause(
    tmp_path_factory: pytest.TempPathFactory, shared_nats_server: NatsServer
) -> None:
    directory = tmp_path_factory.mktemp("service")
    database = f"sqlite:///{directory}/tasks.db"
    async with running_service(directory, database, shared_nats_server.url, backoff_seconds=0.6) as service:
        alice = service.client()
        task = await alice.create()
        await service.send_outbox()
        attempt = await service.worker().claim(task.id)
        await attempt.say(failed=crashed())
        await service.record_facts()
        await service.send_outbox()
        assert await service.queued(task) == 1
        async with service.running():

            async def queued() -> bool:
                return await service.queued(task) == 2

            await eventually(queued)


async def test_what_cannot_succeed_fails_at_once_with_every_problem(service: Service, alice: Client) -> None:
    task = await alice.create()
    attempt = await service.worker().claim(task.id)
    error = task_pb2.TaskError(reason="DATASET_INVALID", message="2 problems", problems=["line 1", "line\0 7"])
    await attempt.say(failed=fact_pb2.AttemptFailed(error=error, retryable=False))
    await service.record_facts()
    seen = await alice.get(task.id)
    assert seen.state == task_pb2.STATE_FAILED
    assert list(seen.error.problems) == ["line 1", "line\ufffd 7"]


async def test_a_leaving_worker_gives_the_task_back(service: Service, alice: Client) -> None:
    task = await alice.create()
    attempt = await service.worker("w1").claim(task.id)
    await attempt.say(checkpoint_saved=attempt.checkpoint(30))
    await attempt.say(released=fact_pb2.AttemptReleased(reason="worker is shutting down"))
    await service.record_facts()
    seen = await alice.get(task.id)
    assert (seen.state, seen.HasField("error")) == (task_pb2.STATE_PENDING, False)
    await service.send_outbox()
    assert await service.queued(task) == 2
    again = await service.worker("w2").claim(task.id, 2)
    assert [checkpoint.step for checkpoint in again.claim.resume_from] == [30]


async def test_outputs_of_dependencies_come_with_the_claim(service: Service, alice: Client) -> None:
    first = await alice.create()
    second = await alice.create(depends_on=[first.id])
    attempt = await service.worker().claim(first.id)
    await attempt.say(completed=attempt.completed())
    await service.record_facts()
    claim = (await service.worker().claim(second.id)).claim
    assert dict(claim.dependency_outputs) == {first.id: f"tasks/{first.id}/attempts/1/output"}


async def test_a_stop_ends_with_the_worker_that_was_to_hear_it(service: Service, alice: Client) -> None:
    task = await alice.create()
    await service.worker("w1").claim(task.id)
    await alice.stop(task.id)
    with pytest.raises(Aborted):
        await service.worker("w2").claim(task.id)
    await expire_lease(service, task.id)
    with pytest.raises(FailedPrecondition):
        await service.worker("w2").claim(task.id)
    assert (await alice.get(task.id)).state == task_pb2.STATE_STOPPED
    assert (await service.event_types(task.id))[-1] == "task.stopped"


async def test_taking_over_for_the_last_time_fails_the_task(service: Service, alice: Client) -> None:
    task = await alice.create()
    for number in (1, 2, 3):
        assert (await service.worker(f"w{number}").claim(task.id)).number == number
        await expire_lease(service, task.id)
    with pytest.raises(FailedPrecondition):
        await service.worker("w4").claim(task.id)
    seen = await alice.get(task.id)
    assert (seen.state, seen.error.reason, seen.attempt) == (task_pb2.STATE_FAILED, "WORKER_LOST", 3)
