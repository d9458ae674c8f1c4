"""Quotas of checkpoints (M21, M24): counted with the checkpoint, a month at a time, told once, enforced at submit."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import update

from servicekit import subjects
from servicekit.errors import FailedPrecondition, InvalidArgument, PermissionDenied
from servicekit.identity import Role
from services.task_service.tests.harness import Attempt, Client, Service, language_model_spec, running_service
from task_service.database.models import QuotaRow
from task_service.facts.consumer import decode
from task_service.facts.recording import FactRecording
from tests.support.nats import NatsServer
from tunesmith.events.v1 import fact_pb2
from tunesmith.task.v1 import event_pb2, quota_service_pb2_grpc, spec_pb2, task_pb2, task_service_pb2
from tunesmith.task.v1 import quota_service_pb2 as pb

CONTINUE, STOP = pb.QUOTA_ACTION_CONTINUE_UNSAVED, pb.QUOTA_ACTION_STOP
sqlite_only = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def stub(client: Client) -> Any:
    return quota_service_pb2_grpc.QuotaServiceStub(client.channel)


async def quota(client: Client, user: str = "") -> pb.Quota:
    found: pb.Quota = (await stub(client).GetQuota(pb.GetQuotaRequest(user=user))).quota
    return found


async def allow(service: Service, allowance: int, action: int = 0, user: str = "alice") -> pb.Quota:
    request = pb.SetQuotaRequest(user=user, monthly_allowance=allowance, exhausted_action=action)  # type: ignore[arg-type]
    set_to: pb.Quota = (await stub(service.client("root", Role.ADMIN)).SetQuota(request)).quota
    return set_to


async def started(service: Service, client: Client, **fields: Any) -> Attempt:
    task = await client.create(**fields)
    return await service.worker().claim(task.id)


async def save(service: Service, attempt: Attempt, *steps: int) -> None:
    for step in steps:
        await attempt.say(checkpoint_saved=attempt.checkpoint(step))
    await service.record_facts()


async def told(service: Service, user: str, task_id: str) -> list[event_pb2.TaskEvent]:
    """The events about a user's quota that a task's checkpoints caused; other tests have users of the same name."""
    await service.send_outbox()
    pattern = f"tunesmith.v1.quota.*.{subjects.user(user)}"
    newest = await service.bus.last_message(subjects.EVENTS, pattern)
    events: list[event_pb2.TaskEvent] = []
    if newest is None:
        return events
    replay = service.bus.replay(subjects.EVENTS, pattern)
    async for message in replay:
        events.append(event_pb2.TaskEvent.FromString(message.data))
        assert message.headers["ce-type"] == f"tunesmith.v1.{events[-1].type}"
        if message.sequence >= newest[0]:
            break
    await replay.aclose()
    return [event for event in events if event.task_id == task_id]


async def test_without_a_quota_checkpoints_are_counted_and_unlimited(service: Service, alice: Client) -> None:
    attempt = await started(service, alice)
    assert attempt.claim.allowance.remaining == -1
    await save(service, attempt, 1, 2, 3)
    found = await quota(alice)
    assert (found.user, found.monthly_allowance, found.used, found.remaining) == ("alice", -1, 3, -1)
    assert (found.exhausted_action, found.low) == (CONTINUE, False)
    assert found.reset_time.ToDatetime().day == 1
    assert found.reset_time.seconds > attempt.claim.task.start_time.seconds


async def test_each_stored_checkpoint_counts_once(service: Service, alice: Client) -> None:
    attempt = await started(service, alice, spec=language_model_spec(save_total_limit=1))
    fact = attempt.fact(checkpoint_saved=attempt.checkpoint(1))
    other = attempt.fact(checkpoint_saved=attempt.checkpoint(2))
    for item in (fact, fact, other, fact):
        await service.bus.publish(subjects.fact(attempt.task_id), item.SerializeToString())
        await service.record_facts()
    assert len(await alice.checkpoints(attempt.task_id)) == 1
    assert (await quota(alice)).used == 2, "removing one frees nothing"


async def test_a_checkpoint_that_is_told_of_again_counts_once(service: Service, alice: Client) -> None:
    attempt = await started(service, alice)
    await save(service, attempt, 1, 1, 1)
    assert (await quota(alice)).used == 1


async def test_facts_that_are_recorded_twice_count_once(service: Service, alice: Client) -> None:
    """The service died between its commit and the acknowledgement."""
    attempt = await started(service, alice)
    await attempt.say(checkpoint_saved=attempt.checkpoint(1))
    messages = await service.fetch_facts()
    for _ in range(2):
        async with service.core.database.sessions.begin() as session:
            await FactRecording.record(session, service.core, [decode(message) for message in messages])
    await service.facts.handle(messages)
    assert (await quota(alice)).used == 1


async def test_workers_learn_what_is_left(service: Service, alice: Client) -> None:
    await allow(service, 3, STOP)
    attempt = await started(service, alice)
    assert (attempt.claim.allowance.remaining, attempt.claim.allowance.exhausted_action) == (3, STOP)
    await save(service, attempt, 1, 2)
    request = task_service_pb2.HeartbeatTaskRequest(task_id=attempt.task_id, attempt=1, worker="w1")
    answer = await service.worker().client.stub.HeartbeatTask(request)
    assert (answer.allowance.remaining, answer.allowance.exhausted_action) == (1, STOP)
    await save(service, attempt, 3, 4)
    assert (await service.worker().client.stub.HeartbeatTask(request)).allowance.remaining == 0
    found = await quota(alice)
    assert (found.used, found.remaining, found.low) == (4, 0, True)


async def test_another_users_checkpoints_do_not_count(service: Service, alice: Client, bob: Client) -> None:
    await allow(service, 3)
    await save(service, await started(service, bob), 1, 2)
    assert (await quota(alice)).used == 0
    assert (await quota(bob)).used == 2


async def test_a_new_month_begins_at_nothing(service: Service, alice: Client) -> None:
    await allow(service, 2)
    attempt = await started(service, alice)
    await save(service, attempt, 1, 2)
    assert (await quota(alice)).remaining == 0
    async with service.core.database.sessions.begin() as session:
        await session.execute(update(QuotaRow).values(period=QuotaRow.period - 1))
    assert ((await quota(alice)).used, (await quota(alice)).remaining) == (0, 2)
    await save(service, attempt, 3, 4)
    assert (await quota(alice)).used == 2
    assert [event.type for event in await told(service, "alice", attempt.task_id)].count("quota.exhausted") == 2, (
        "once in each month"
    )


async def test_low_and_exhausted_are_told_once(service: Service, alice: Client) -> None:
    await allow(service, 4)
    attempt = await started(service, alice)
    await save(service, attempt, 1, 2, 3, 4, 5)
    events = await told(service, "alice", attempt.task_id)
    assert [event.type for event in events] == ["quota.low", "quota.exhausted"]
    assert [(event.quota.used, event.quota.remaining) for event in events] == [(2, 2), (4, 0)]
    assert {(event.owner, event.quota.user) for event in events} == {("alice", "alice")}
    assert "quota.low" not in await service.event_types(attempt.task_id), "a task's watchers do not hear of it"


@sqlite_only
@pytest.mark.parametrize("user", ["m\u00fcller.*>", "a b.c", "0123456789abcdefghjkmnpqrs", "x" * 256])
async def test_events_about_users_with_any_name(service: Service, user: str) -> None:
    await allow(service, 1, user=user)
    attempt = await started(service, service.client(user))
    await save(service, attempt, 1)
    (event,) = await told(service, user, attempt.task_id)
    assert (event.type, event.quota.user) == ("quota.exhausted", user)
    token = subjects.user(user)
    assert not set(". *>") & set(token)
    assert len(token) != 26
    assert subjects.user("alice-1_b") == "alice-1_b"


async def test_administrators_set_quotas(service: Service, alice: Client, bob: Client) -> None:
    root = service.client("root", Role.ADMIN)
    assert (await allow(service, 7, STOP)).exhausted_action == STOP
    assert ((await allow(service, 9)).exhausted_action, (await quota(alice)).monthly_allowance) == (STOP, 9)
    assert (await quota(root, "alice")) == await quota(alice)
    assert (await quota(service.client("worker", Role.SERVICE), "alice")) == await quota(alice)
    for call in (
        stub(bob).GetQuota(pb.GetQuotaRequest(user="alice")),
        stub(alice).SetQuota(pb.SetQuotaRequest(user="alice", monthly_allowance=-1)),
    ):
        with pytest.raises(PermissionDenied):
            await call
    with pytest.raises(InvalidArgument):
        await allow(service, -2)
    with pytest.raises(InvalidArgument):
        await allow(service, 1, user="a\0b")


async def test_quotas_set_at_once(service: Service, alice: Client) -> None:
    await asyncio.gather(*(allow(service, number) for number in range(8)))
    assert 0 <= (await quota(alice)).monthly_allowance < 8


async def test_the_deployments_own_quota_holds_for_others(
    tmp_path: Any, database_url: str, shared_nats_server: NatsServer
) -> None:
    async with running_service(tmp_path, database_url, shared_nats_server.url, checkpoint_quota=2) as service:
        alice = service.client()
        await save(service, await started(service, alice), 1)
        assert ((await quota(alice)).monthly_allowance, (await quota(alice)).remaining) == (2, 1)
        assert (await allow(service, -1)).remaining == -1


async def test_a_task_that_would_stop_at_its_first_checkpoint_is_refused(service: Service, alice: Client) -> None:
    await allow(service, 0, STOP)
    for fields in ({}, {"validate_only": True}):
        with pytest.raises(FailedPrecondition, match="save_strategy NO") as caught:
            await alice.create(**fields)
        assert caught.value.reason == "QUOTA_EXHAUSTED"
    unsaved = language_model_spec(save_strategy=spec_pb2.INTERVAL_STRATEGY_NO)
    assert (await alice.create(spec=unsaved)).state == task_pb2.STATE_PENDING
    await allow(service, 0, CONTINUE)
    assert (await alice.create()).state == task_pb2.STATE_PENDING


async def test_a_task_is_not_resumed_to_be_stopped_at_once(service: Service, alice: Client) -> None:
    attempt = await started(service, alice)
    await attempt.say(failed=crash())
    await service.record_facts()
    await allow(service, 0, STOP)
    with pytest.raises(FailedPrecondition, match="quota"):
        await alice.resume(attempt.task_id)
    await allow(service, 1)
    assert (await alice.resume(attempt.task_id)).run == 2


def crash() -> Any:

    return fact_pb2.AttemptFailed(error=task_pb2.TaskError(reason="X", message="x"), retryable=False)


async def test_a_stop_that_nobody_asked_for_says_why(service: Service, alice: Client) -> None:

    attempt = await started(service, alice)
    error = task_pb2.TaskError(reason="QUOTA_EXHAUSTED", message="the quota is spent")
    await attempt.say(stopped=fact_pb2.AttemptStopped(checkpoint_step=3, error=error))
    await service.record_facts()
    task = await alice.get(attempt.task_id)
    assert (task.state, task.error.reason, task.error.message) == (
        task_pb2.STATE_STOPPED,
        "QUOTA_EXHAUSTED",
        "the quota is spent",
    )
    assert not (await alice.resume(attempt.task_id)).HasField("error")
