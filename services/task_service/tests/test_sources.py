"""Evaluations and exports: what they start from, when they may start, and how they are found."""

import asyncio
from typing import Any

import pytest

from servicekit.errors import FailedPrecondition, NotFound
from services.task_service.tests.harness import Client, Service, crashed, language_model_spec
from services.task_service.tests.source_tasks import evaluation, export, problems, training
from tunesmith.task.v1 import spec_pb2, task_pb2, task_service_pb2

PENDING, COMPLETED, FAILED = task_pb2.STATE_PENDING, task_pb2.STATE_COMPLETED, task_pb2.STATE_FAILED


async def test_an_evaluation_is_worked_on_with_all_that_its_source_produced(service: Service, alice: Client) -> None:
    source, _ = await training(service, alice, 10, 20, end="completed")
    task = await alice.create("score it", spec=evaluation(source.id))
    assert (task.kind, task.state, list(task.depends_on)) == (task_pb2.KIND_EVALUATE, PENDING, [])
    await service.send_outbox()
    assert await service.queued(task) == 1
    given = (await service.worker().claim(task.id)).claim.source
    assert (given.task_id, given.name, given.state) == (source.id, source.name, COMPLETED)
    assert given.spec == source.spec
    assert [item.step for item in given.checkpoints] == [10, 20]
    assert given.output.prefix == f"tasks/{source.id}/attempts/1/output"
    assert (given.output.directory, given.output.step) == (source.output_dir, 20)
    assert given == await alice.source(source.id)


async def test_an_export_goes_to_a_queue_of_its_own_and_completes(service: Service, alice: Client) -> None:
    source, _ = await training(service, alice, 10, end="completed")
    task = await alice.create(spec=export(source.id), pool="large")
    await service.send_outbox()
    assert await service.queued(task) == 1
    attempt = await service.worker().claim(task.id)
    await attempt.say(completed=attempt.completed())
    await service.record_facts()
    assert (await alice.get(task.id)).state == COMPLETED
    assert await service.event_types(task.id) == ["task.created", "task.started", "task.completed"]


async def test_a_claim_of_a_training_has_no_source(service: Service, alice: Client) -> None:
    _, attempt = await training(service, alice)
    assert not attempt.claim.HasField("source")


@pytest.mark.parametrize(("make", "kind"), [(evaluation, "evaluate"), (export, "export")])
async def test_a_source_must_be_the_callers_own(
    service: Service, alice: Client, bob: Client, make: Any, kind: str
) -> None:
    foreign, _ = await training(service, bob, 10, end="completed")
    field = f"spec.{kind}.source_task_id"
    for missing in (foreign.id, "nobody", "no\0body"):
        assert await problems(alice, make(missing)) == {field: f"there is no task {missing}"}
    assert service.checker.calls == 1, "nothing of a task that is not there is told to another service"
    with pytest.raises(NotFound, match="there is no task"):
        await alice.source(foreign.id)


async def test_a_source_must_be_a_training(service: Service, alice: Client) -> None:
    source, _ = await training(service, alice, 10, end="completed")
    scores = await alice.create(spec=evaluation(source.id))
    found = await problems(alice, export(scores.id))
    assert found == {"spec.export.source_task_id": f"task {scores.id} is an evaluation; name a fine-tuning task"}


async def test_it_waits_for_a_source_that_has_not_ended(service: Service, alice: Client) -> None:
    source, attempt = await training(service, alice, 10)
    tasks = [await alice.create(spec=spec) for spec in (evaluation(source.id), export(source.id))]
    assert [list(task.depends_on) for task in tasks] == [[source.id], [source.id]]
    preview = await alice.create(spec=evaluation(source.id), validate_only=True)
    assert list(preview.depends_on) == [source.id]
    await service.send_outbox()
    assert [await service.queued(task) for task in tasks] == [0, 0]
    await attempt.say(completed=attempt.completed())
    await service.record_facts()
    await service.send_outbox()
    assert [await service.queued(task) for task in tasks] == [1, 1]


async def test_it_fails_with_a_source_that_it_waits_for(service: Service, alice: Client) -> None:
    source, attempt = await training(service, alice, 10)
    task = await alice.create(spec=evaluation(source.id))
    await attempt.say(failed=crashed(retryable=False))
    await service.record_facts()
    seen = await alice.get(task.id)
    assert (seen.state, seen.error.reason) == (FAILED, "DEPENDENCY_FAILED")


async def test_stored_checkpoints_of_a_running_task_can_be_used_at_once(service: Service, alice: Client) -> None:
    source, _ = await training(service, alice, 10, 20)
    for spec in (evaluation(source.id, 10, 20), export(source.id, 20)):
        task = await alice.create(spec=spec)
        assert list(task.depends_on) == []
        claim = (await service.worker().claim(task.id)).claim
        assert (claim.source.state, claim.source.HasField("output")) == (task_pb2.STATE_RUNNING, False)


async def test_steps_that_are_not_stored_are_named_one_by_one(service: Service, alice: Client) -> None:
    source, _ = await training(service, alice, 10, 20)
    found = await problems(alice, evaluation(source.id, 10, 15, 30))
    assert set(found) == {"spec.evaluate.checkpoint_steps[1]", "spec.evaluate.checkpoint_steps[2]"}
    first = found["spec.evaluate.checkpoint_steps[1]"]
    assert first.startswith(f"task {source.id} has no stored checkpoint at step 15; it has 10, 20")
    assert "depends_on" in first
    later = await alice.create(spec=evaluation(source.id, 10, 30), depends_on=[source.id])
    assert list(later.depends_on) == [source.id]
    done, _ = await training(service, alice, end="completed")
    found = await problems(alice, export(done.id, 5))
    assert found == {"spec.export.checkpoint_step": f"task {done.id} has no stored checkpoint at step 5; it has 7"}
    assert (await alice.create(spec=export(done.id, 7))).state == PENDING, "the step of the final model"


async def test_rejected_checkpoints_are_not_there(service: Service, alice: Client) -> None:
    source, attempt = await training(service, alice, 10, 20)
    bad = attempt.checkpoint(20)
    rejected = {"step": 20, "prefix": bad.prefix, "reason": "its hash differs"}
    await attempt.say(checkpoint_rejected=rejected)
    await service.record_facts()
    assert list(await problems(alice, export(source.id, 20))) == ["spec.export.checkpoint_step"]
    assert [item.step for item in (await alice.source(source.id)).checkpoints] == [10]


async def test_what_a_failed_task_has_stored_can_be_used(service: Service, alice: Client) -> None:
    source, _ = await training(service, alice, 10, end="failed")
    assert (await alice.create(spec=export(source.id, 10))).state == PENDING
    assert (await alice.create(spec=evaluation(source.id))).state == PENDING
    message = (await problems(alice, export(source.id)))["spec.export.source_task_id"]
    assert message == f"task {source.id} is FAILED and has no final model, name one of its checkpoints: 10"
    empty, _ = await training(service, alice, end="failed")
    assert "no checkpoint" in (await problems(alice, evaluation(empty.id)))["spec.evaluate.source_task_id"]


async def test_the_base_model_alone_needs_no_training(service: Service, alice: Client) -> None:
    source = await alice.create()
    task = await alice.create(spec=export(source.id, form=spec_pb2.EXPORT_FORMAT_GGUF_BASE))
    assert list(task.depends_on) == []
    spec = language_model_spec()
    spec.finetune.base_model = f"task:{source.id}"
    second = await alice.create(spec=spec, depends_on=[source.id])
    task = await alice.create(spec=export(second.id, form=spec_pb2.EXPORT_FORMAT_GGUF_BASE))
    assert list(task.depends_on) == [second.id], "the base model is an output that is not there yet"


async def test_a_base_model_that_is_an_output_comes_with_the_source(service: Service, alice: Client) -> None:
    first, _ = await training(service, alice, end="completed")
    spec = language_model_spec()
    spec.finetune.base_model = f"task:{first.id}"
    second, _ = await training(service, alice, end="completed", spec=spec, depends_on=[first.id])
    assert (await alice.source(second.id)).base_model_prefix == f"tasks/{first.id}/attempts/1/output"
    await alice.create(spec=export(second.id))
    with pytest.raises(FailedPrecondition, match="in use"):
        await alice.delete(first.id)


async def test_crashes_are_retried_and_a_stopped_task_runs_again(service: Service, alice: Client) -> None:
    source, _ = await training(service, alice, 10, end="completed")
    task = await alice.create(spec=evaluation(source.id, 10))
    for number in (1, 2):
        attempt = await service.worker().claim(task.id, number)
        await attempt.say(failed=crashed())
        await service.record_facts()
    attempt = await service.worker().claim(task.id, 3)
    await alice.stop(task.id)
    await attempt.say(stopped={})
    await service.record_facts()
    assert (await alice.get(task.id)).state == task_pb2.STATE_STOPPED
    assert (await alice.resume(task.id)).run == 2
    claim = (await service.worker().claim(task.id, 4)).claim
    assert (claim.source.task_id, list(claim.resume_from)) == (source.id, [])
    with pytest.raises(NotFound, match="no stored checkpoint"):
        await alice.resume(task.id, 10)


async def test_tasks_are_listed_by_kind(service: Service, alice: Client) -> None:
    source, _ = await training(service, alice, 10, end="completed")
    scores, package = await alice.create(spec=evaluation(source.id)), await alice.create(spec=export(source.id))
    for kind, task in (
        (task_pb2.KIND_FINETUNE, source),
        (task_pb2.KIND_EVALUATE, scores),
        (task_pb2.KIND_EXPORT, package),
    ):
        assert [item.id for item in (await alice.page(kinds=[kind])).tasks] == [task.id]


async def test_tasks_are_listed_by_their_source(service: Service, alice: Client, bob: Client) -> None:
    """M19: what came after a training is found by its id."""
    first, _ = await training(service, alice, end="completed")
    spec = language_model_spec()
    spec.finetune.base_model = f"task:{first.id}"
    second, _ = await training(service, alice, 10, end="completed", spec=spec, depends_on=[first.id])
    scores, package = await alice.create(spec=evaluation(second.id)), await alice.create(spec=export(second.id))
    goes_on = language_model_spec()
    goes_on.CopyFrom(spec)
    goes_on.finetune.resume_from_checkpoint = f"tasks/{second.id}/attempts/1/checkpoint-10"
    await alice.create(spec=goes_on, depends_on=[first.id])
    found = (await alice.page(source_task_id=second.id, with_total=True)).tasks
    assert [item.id for item in found] == [package.id, scores.id]
    one = await alice.page(source_task_id=second.id, kinds=[task_pb2.KIND_EVALUATE])
    assert [item.id for item in one.tasks] == [scores.id]
    for client, task_id in ((alice, first.id), (bob, second.id), (alice, "no\0body")):
        assert list((await client.page(source_task_id=task_id)).tasks) == []


async def test_ending_a_source_races_with_its_use(service: Service, alice: Client) -> None:
    source, attempt = await training(service, alice, 10)
    await attempt.say(completed=attempt.completed())
    task, _ = await asyncio.gather(alice.create(spec=evaluation(source.id)), service.record_facts())
    await service.send_outbox()
    assert await service.queued(task) == 1, "whether it came first or last, it does not wait for ever"


async def test_sources_of_a_worker_are_everybodys(service: Service, alice: Client) -> None:
    source, _ = await training(service, alice, 10)
    request = task_service_pb2.GetTaskSourceRequest(task_id=source.id)
    given = (await service.worker().client.stub.GetTaskSource(request)).source
    assert [item.step for item in given.checkpoints] == [10]
