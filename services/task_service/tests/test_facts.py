"""Facts: each once, in any order, never from an old attempt, and never blocked by a bad one."""

import asyncio
import math
import random

import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from servicekit import subjects
from servicekit.errors import InvalidArgument
from services.task_service.tests.harness import Attempt, Client, Service, crashed, language_model_spec
from task_service.database.models import AttemptRow, GarbageRow, MetricPointRow
from task_service.domain.lifecycle import Directive, State
from task_service.facts import consumer as consumer_module
from task_service.portions import portions
from tunesmith.events.v1 import fact_pb2
from tunesmith.task.v1 import task_pb2, task_service_pb2


async def points(service: Service) -> dict[tuple[str, int], float]:
    async with service.core.database.sessions() as session:
        rows = await session.execute(select(MetricPointRow.name, MetricPointRow.step, MetricPointRow.value))
        return {(name, step): value for name, step, value in rows}


async def started(service: Service, alice: Client, **fields: object) -> Attempt:
    task = await alice.create(**fields)
    return await service.worker().claim(task.id)


async def test_duplicates_count_once(service: Service, alice: Client) -> None:
    attempt = await started(service, alice)
    fact = attempt.fact(metrics=attempt.metrics(1, loss=2.0))
    saved = attempt.fact(checkpoint_saved=attempt.checkpoint(1))
    for _ in range(3):
        for item in (fact, saved):
            await service.bus.publish(subjects.fact(attempt.task_id), item.SerializeToString())
        await service.record_facts()
    types = await service.event_types(attempt.task_id)
    assert (types.count("metrics.logged"), types.count("checkpoint.saved")) == (1, 1)
    assert len(await alice.checkpoints(attempt.task_id)) == 1


async def test_the_order_of_arrival_does_not_matter_for_what_was_measured(service: Service, alice: Client) -> None:
    attempt = await started(service, alice)
    facts = [attempt.fact(metrics=attempt.metrics(step, loss=float(step))) for step in range(1, 41)]
    saved = attempt.fact(checkpoint_saved=attempt.checkpoint(40))
    end = attempt.fact(completed=attempt.completed())
    shuffled = [*facts, saved, end, *facts[::3]]
    random.Random(4).shuffle(shuffled)
    for position in range(0, len(shuffled), 7):
        for fact in shuffled[position : position + 7]:
            await service.bus.publish(subjects.fact(attempt.task_id), fact.SerializeToString())
        await service.record_facts()
    assert await points(service) == {("loss", step): float(step) for step in range(1, 41)}
    task = await alice.get(attempt.task_id)
    assert task.state == task_pb2.STATE_COMPLETED
    assert dict(task.metrics) == {"loss": 40.0}
    assert len(await alice.checkpoints(attempt.task_id)) == 1
    async with service.core.database.sessions() as session:
        row = await session.get(AttemptRow, (task.number, 1))
        assert row is not None
        assert row.facts_seen == [[1, 42]]


async def test_not_a_number_and_infinities_are_kept(service: Service, alice: Client) -> None:
    attempt = await started(service, alice)
    await attempt.say(metrics=attempt.metrics(1, loss=math.nan, grad_norm=math.inf, low=-math.inf))
    await service.record_facts()
    task = await alice.get(attempt.task_id)
    assert math.isnan(task.metrics["loss"])
    assert (task.metrics["grad_norm"], task.metrics["low"]) == (math.inf, -math.inf)
    async with service.core.database.sessions() as session:
        values = set(await session.scalars(select(MetricPointRow.value).where(MetricPointRow.name != "loss")))
        assert values == {math.inf, -math.inf}
        stored = await session.scalar(select(MetricPointRow.value).where(MetricPointRow.name == "loss"))
        assert stored is not None
        assert math.isnan(stored)


async def test_a_later_attempt_overwrites_the_steps_it_repeats(service: Service, alice: Client) -> None:
    first = await started(service, alice)
    for step in (1, 2, 3):
        await first.say(metrics=first.metrics(step, loss=float(step)))
    await first.say(failed=crashed())
    await service.record_facts()
    second = await service.worker().claim(first.task_id, 2)
    await second.say(metrics=second.metrics(2, loss=20.0))
    await service.record_facts()
    assert await points(service) == {("loss", 1): 1.0, ("loss", 2): 20.0, ("loss", 3): 3.0}
    assert dict((await alice.get(first.task_id)).metrics) == {"loss": 20.0}


async def test_what_was_measured_before_the_end_counts_after_it(service: Service, alice: Client) -> None:
    attempt = await started(service, alice)
    late = attempt.fact(metrics=attempt.metrics(9, loss=1.0))
    await attempt.say(completed=attempt.completed())
    await service.record_facts()
    await service.bus.publish(subjects.fact(attempt.task_id), late.SerializeToString())
    await service.record_facts()
    assert await points(service) == {("loss", 9): 1.0}


async def test_points_of_a_late_fact_belong_to_the_run_that_measured_them(service: Service, alice: Client) -> None:
    attempt = await started(service, alice)
    late = attempt.fact(metrics=attempt.metrics(9, loss=1.0))
    await attempt.say(failed=crashed(retryable=False))
    await service.record_facts()
    await alice.resume(attempt.task_id)
    await service.bus.publish(subjects.fact(attempt.task_id), late.SerializeToString())
    await service.record_facts()
    async with service.core.database.sessions() as session:
        assert await session.scalar(select(MetricPointRow.run)) == 1


@pytest.mark.parametrize("end", ["completed", "failed", "stopped", "released"])
async def test_an_ended_attempt_cannot_end_again(service: Service, alice: Client, end: str) -> None:
    attempt = await started(service, alice)
    await attempt.say(failed=crashed(retryable=False))
    payload = {
        "completed": attempt.completed(),
        "failed": crashed(),
        "stopped": fact_pb2.AttemptStopped(),
        "released": fact_pb2.AttemptReleased(),
    }[end]
    await attempt.say(**{end: payload})
    await service.record_facts()
    assert (await alice.get(attempt.task_id)).state == task_pb2.STATE_FAILED
    assert (await service.event_types(attempt.task_id))[-1] == "task.failed"


async def test_bad_messages_are_dropped_and_the_rest_goes_on(
    service: Service, alice: Client, caplog: pytest.LogCaptureFixture
) -> None:
    attempt = await started(service, alice)
    subject = subjects.fact(attempt.task_id)
    await service.bus.publish(subject, b"\xff\xff\xff not protobuf")
    await service.bus.publish(subjects.fact("somebody-else"), attempt.fact().SerializeToString())
    await service.bus.publish(subject, fact_pb2.Fact(task_id=attempt.task_id, attempt=1).SerializeToString())
    await service.bus.publish(subject, b"")
    await attempt.say(metrics=attempt.metrics(1, loss=1.0))
    await service.record_facts()
    assert await points(service) == {("loss", 1): 1.0}
    assert caplog.text.count("is not a usable fact and is dropped") == 4
    assert await service.fetch_facts() == []
    assert not await consumer_module.facts_waiting(service.bus, attempt.task_id)


async def test_facts_of_a_newer_worker_are_tolerated(service: Service, alice: Client) -> None:
    attempt = await started(service, alice)
    unknown_field = b"\xf2\x7d\x02hi"  # field 2014, length-delimited
    await service.bus.publish(subjects.fact(attempt.task_id), attempt.fact().SerializeToString() + unknown_field)
    await attempt.say(metrics=attempt.metrics(1, loss=1.0))
    await service.record_facts()
    assert await points(service) == {("loss", 1): 1.0}


async def test_names_that_cannot_be_stored_lose_their_point_alone(service: Service, alice: Client) -> None:
    attempt = await started(service, alice)
    names = ["", "x" * 201, "nul\0", "loss"]
    reported = [task_pb2.MetricPoint(name=name, step=1, value=1.0) for name in names]
    await attempt.say(metrics=fact_pb2.MetricsReported(points=reported))
    await service.record_facts()
    assert await points(service) == {("loss", 1): 1.0}


async def test_a_fact_that_breaks_its_batch_is_dropped_alone(
    service: Service, alice: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    attempt = await started(service, alice)
    record = consumer_module.FactRecording.record

    async def fragile(session, core, facts):  # type: ignore[no-untyped-def]
        if any(fact.sequence == 2 for fact in facts):
            raise RuntimeError("a defect")
        await record(session, core, facts)

    monkeypatch.setattr(consumer_module.FactRecording, "record", fragile)
    for step in (1, 2, 3):
        await attempt.say(metrics=attempt.metrics(step, loss=1.0))
    await service.record_facts()
    assert await points(service) == {("loss", 1): 1.0, ("loss", 3): 1.0}
    assert "cannot be recorded" in caplog.text
    assert await service.fetch_facts() == []


async def test_facts_recorded_but_not_acknowledged_have_no_second_effect(service: Service, alice: Client) -> None:
    attempt = await started(service, alice)
    await attempt.say(checkpoint_saved=attempt.checkpoint(1))
    await attempt.say(completed=attempt.completed())
    messages = await service.fetch_facts()
    facts = [consumer_module.decode(message) for message in messages]
    for _ in range(2):
        async with service.core.database.sessions.begin() as session:
            await consumer_module.FactRecording.record(session, service.core, facts)
    await service.facts.handle(messages)
    types = await service.event_types(attempt.task_id)
    assert (types.count("checkpoint.saved"), types.count("task.completed")) == (1, 1)


async def test_two_consumers_at_once_record_each_fact_once(service: Service, alice: Client) -> None:
    attempts = [await started(service, alice) for _ in range(4)]
    for step in range(1, 51):
        for attempt in attempts:
            await attempt.say(metrics=attempt.metrics(step, loss=float(step)))
    facts = [consumer_module.decode(message) for message in await service.fetch_facts()]

    async def record(session: AsyncSession) -> None:
        await consumer_module.FactRecording.record(session, service.core, facts)

    await asyncio.gather(*(service.core.database.transaction(record) for _ in range(3)))
    async with service.core.database.sessions() as session:
        assert await session.scalar(select(func.count()).select_from(MetricPointRow)) == 200
    for attempt in attempts:
        told = [event for event in await service.events(attempt.task_id) if event.type == "metrics.logged"]
        assert sum(len(event.metrics.points) for event in told) == 50


async def test_metrics_are_told_before_what_follows_them(service: Service, alice: Client) -> None:
    attempt = await started(service, alice)
    await attempt.say(metrics=attempt.metrics(1, loss=1.0))
    await attempt.say(checkpoint_saved=attempt.checkpoint(1))
    await attempt.say(metrics=attempt.metrics(2, loss=1.0))
    await attempt.say(completed=attempt.completed())
    await service.record_facts()
    types = await service.event_types(attempt.task_id)
    assert types[2:] == ["metrics.logged", "checkpoint.saved", "metrics.logged", "task.completed"]


@pytest.mark.parametrize("limit", [1, 2, 3, 5])
async def test_only_so_many_checkpoints_are_kept(service: Service, alice: Client, limit: int) -> None:
    attempt = await started(service, alice, spec=language_model_spec(save_total_limit=limit))
    saved = (10, 20, 100, 110, 120, 130)
    for count, step in enumerate(saved, start=1):
        checkpoint = attempt.checkpoint(step)
        await service.objects.put_bytes(f"{checkpoint.prefix}/manifest.json", b"{}")
        await attempt.say(checkpoint_saved=checkpoint)
        await service.record_facts()
        kept = [item.step for item in await alice.checkpoints(attempt.task_id)]
        assert kept == list(saved[:count][-limit:])
    types = await service.event_types(attempt.task_id)
    assert types.count("checkpoint.removed") == len(saved) - limit
    while await service.garbage.collect_once():
        pass
    left = [item.key async for item in service.objects.list(f"tasks/{attempt.task_id}/")]
    steps = sorted(int(key.split("/")[-2].removeprefix("checkpoint-")) for key in left)
    assert steps == list(saved[-limit:])


async def test_a_checkpoint_saved_again_replaces_the_older_one(service: Service, alice: Client) -> None:
    first = await started(service, alice)
    await first.say(checkpoint_saved=first.checkpoint(10))
    await first.say(failed=crashed())
    await service.record_facts()
    second = await service.worker().claim(first.task_id, 2)
    await second.say(checkpoint_saved=second.checkpoint(10))
    await service.record_facts()
    assert [(item.attempt, item.step) for item in await alice.checkpoints(first.task_id)] == [(2, 10)]


async def test_a_rejected_checkpoint_is_not_offered_again(service: Service, alice: Client) -> None:
    attempt = await started(service, alice)
    for step in (10, 20):
        await attempt.say(checkpoint_saved=attempt.checkpoint(step))
    await attempt.say(
        checkpoint_rejected=fact_pb2.CheckpointRejected(
            prefix=attempt.checkpoint(20).prefix, step=20, reason="model.safetensors: sha256 differs"
        )
    )
    await attempt.say(failed=crashed())
    await service.record_facts()
    again = await service.worker().claim(attempt.task_id, 2)
    assert [item.step for item in again.claim.resume_from] == [10]
    assert [item.step for item in await alice.checkpoints(attempt.task_id)] == [10]
    rejected = [event for event in await service.events(attempt.task_id) if event.type == "checkpoint.rejected"]
    assert [event.checkpoint.reason for event in rejected] == ["model.safetensors: sha256 differs"]
    async with service.core.database.sessions() as session:
        garbage = list(await session.scalars(select(GarbageRow.prefix)))
    assert not any("checkpoint-20" in prefix for prefix in garbage)


@pytest.mark.parametrize("prefix", ["", "/", "tasks/", "tasks/other/attempts/1/c", "tasks/{id}", "tasks/{id}/../x"])
async def test_a_foreign_prefix_is_not_taken_over(service: Service, alice: Client, prefix: str) -> None:
    attempt = await started(service, alice)
    checkpoint = attempt.checkpoint(1)
    checkpoint.prefix = prefix.format(id=attempt.task_id)
    await attempt.say(checkpoint_saved=checkpoint)
    await service.record_facts()
    assert await alice.checkpoints(attempt.task_id) == []


def test_batches_are_bounded_in_bytes() -> None:
    assert portions([], 10) == []
    assert portions([4, 4, 4, 20, 1], 10) == [(0, 2), (2, 3), (3, 4), (4, 5)]


def test_states_and_directives_are_those_of_the_contract() -> None:
    for state in State:
        assert task_pb2.State.Value(f"STATE_{state.name}") == state
    for directive in Directive:
        assert task_service_pb2.Directive.Value(f"DIRECTIVE_{directive.name}") == directive


async def test_no_event_is_too_big_for_the_broker(service: Service, alice: Client) -> None:
    """One that was would hold up every other event for ever."""
    attempt = await started(service, alice, description="d" * 10_000, labels={str(n): "v" * 7_000 for n in range(30)})
    for start in range(0, 4000, 1000):
        names = [f"{number}-" + "n" * 190 for number in range(start, start + 1000)]
        reported = [task_pb2.MetricPoint(name=name, step=1, value=1.0) for name in names]
        await attempt.say(metrics=fact_pb2.MetricsReported(points=reported))
    error = task_pb2.TaskError(reason="r" * 5000, message="m" * 100_000, problems=["p" * 5000] * 150)
    await attempt.say(checkpoint_rejected=fact_pb2.CheckpointRejected(prefix="x", reason="y" * 900_000))
    await attempt.say(failed=fact_pb2.AttemptFailed(error=error, retryable=False))
    await service.record_facts()
    types = await service.event_types(attempt.task_id)
    assert types[-1] == "task.failed"
    assert types.count("metrics.logged") == 4
    with pytest.raises(InvalidArgument, match="bytes"):
        await alice.create(labels={str(n): "v" * 9_000 for n in range(30)})
