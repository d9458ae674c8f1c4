"""Evaluations and exports: what they start from, when they may start, and what stays until they have ended."""

import asyncio
from typing import Any

import pytest

from servicekit.errors import FailedPrecondition, InvalidArgument, NotFound, Problem
from servicekit.identity import Principal, Role
from services.task_service.tests.harness import Attempt, Client, Service, crashed, language_model_spec
from task_service.database.models import DatasetRow
from task_service.datasets.queries import Datasets
from tunesmith.task.v1 import spec_pb2, task_pb2, task_service_pb2

PENDING, COMPLETED, FAILED = task_pb2.STATE_PENDING, task_pb2.STATE_COMPLETED, task_pb2.STATE_FAILED
GGUF, MERGED = spec_pb2.EXPORT_FORMAT_GGUF, spec_pb2.EXPORT_FORMAT_MERGED
DEFAULT, USER = task_pb2.PARAMETER_SOURCE_DEFAULT, task_pb2.PARAMETER_SOURCE_USER


def evaluation(source: str, *steps: int, **fields: Any) -> spec_pb2.TaskSpec:
    return spec_pb2.TaskSpec(evaluate=spec_pb2.EvaluateSpec(source_task_id=source, checkpoint_steps=steps, **fields))


def export(source: str, step: int = 0, form: Any = MERGED, **fields: Any) -> spec_pb2.TaskSpec:
    spec = spec_pb2.ExportSpec(source_task_id=source, checkpoint_step=step, format=form, **fields)
    return spec_pb2.TaskSpec(export=spec)


async def training(
    service: Service, client: Client, *steps: int, end: str = "", **fields: Any
) -> tuple[task_pb2.Task, Attempt]:
    """A task that a worker trains: with checkpoints, and an end if one is named."""
    task = await client.create(**fields)
    attempt = await service.worker().claim(task.id)
    for step in steps:
        await attempt.say(checkpoint_saved=attempt.checkpoint(step))
    if end == "completed":
        progress = task_pb2.Progress(step=max(steps, default=7))
        completed = attempt.completed()
        completed.progress.CopyFrom(progress)
        await attempt.say(completed=completed)
    elif end == "failed":
        await attempt.say(failed=crashed(retryable=False))
    await service.record_facts()
    return await client.get(task.id), attempt


async def problems(client: Client, spec: spec_pb2.TaskSpec, **fields: Any) -> dict[str, str]:
    with pytest.raises(InvalidArgument) as caught:
        await client.create(spec=spec, **fields)
    return {problem.field: problem.message for problem in caught.value.problems}


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


async def test_defaults_of_evaluations(service: Service, alice: Client) -> None:
    source, _ = await training(service, alice, 10, end="completed")
    sampling = spec_pb2.SamplingParameters(temperature=0.0)
    task = await alice.create(spec=evaluation(source.id, 10, sampling=sampling, min_samples=50))
    spec = task.spec.evaluate
    assert (spec.max_samples, spec.min_samples, spec.sample_ratio, spec.seed) == (50, 50, 0.3, 42)
    assert spec.split == spec_pb2.EVALUATION_SPLIT_AUTO
    assert (spec.sampling.temperature, spec.sampling.max_tokens, spec.sampling.top_k) == (0.0, 256, 20)
    assert (spec.sampling.top_p, spec.sampling.repetition_penalty, spec.sampling.seed) == (0.9, 1.1, 42)
    sources = task.parameter_sources
    assert (sources["evaluate.sampling.temperature"], sources["evaluate.sampling.top_k"]) == (USER, DEFAULT)
    assert (sources["evaluate.min_samples"], sources["evaluate.max_samples"]) == (USER, DEFAULT)
    plain = (await alice.create(spec=evaluation(source.id, max_samples=3))).spec.evaluate
    assert (plain.max_samples, plain.min_samples) == (3, 3)
    found = await problems(alice, evaluation(source.id, min_samples=9, max_samples=3))
    assert list(found) == ["spec.evaluate.min_samples"]


async def test_defaults_of_exports(service: Service, alice: Client) -> None:
    source, _ = await training(service, alice, end="completed")
    gguf = await alice.create(spec=export(source.id, form=GGUF))
    assert (list(gguf.spec.export.quantizations), gguf.spec.export.modelfile) == (["Q4_K_M"], True)
    assert gguf.parameter_sources["export.quantizations"] == DEFAULT
    merged = await alice.create(spec=export(source.id))
    assert (list(merged.spec.export.quantizations), merged.spec.export.HasField("modelfile")) == ([], False)


async def test_the_service_that_does_the_work_is_asked_with_the_source(service: Service, alice: Client) -> None:
    source, _ = await training(service, alice, 10, end="completed")
    await alice.create(spec=export(source.id, form=GGUF))
    asked = service.checker.sources[-1]
    assert asked is not None
    assert asked == await alice.source(source.id)
    assert list(service.checker.specs[-1].export.quantizations) == ["Q4_K_M"], "it sees the defaults"
    service.checker.found = [Problem("spec.export.quantizations[0]", "rows of 96 are not divisible by 256")]
    assert list(await problems(alice, export(source.id, form=GGUF))) == ["spec.export.quantizations[0]"]


async def test_a_source_is_not_deleted_from_under_a_task(service: Service, alice: Client) -> None:
    source, _ = await training(service, alice, 10, end="completed")
    first, second = [await alice.create(spec=export(source.id)) for _ in range(2)]
    with pytest.raises(FailedPrecondition) as caught:
        await alice.delete(source.id)
    assert caught.value.reason == "TASK_IN_USE"
    assert caught.value.metadata["used_by"] == f"{first.id},{second.id}"
    await alice.stop(first.id)
    attempt = await service.worker().claim(second.id)
    await attempt.say(completed=attempt.completed())
    await service.record_facts()
    await alice.delete(source.id)
    with pytest.raises(FailedPrecondition) as caught:
        await alice.resume(first.id)
    assert caught.value.reason == "SOURCE_GONE"


async def test_a_source_is_deleted_by_force(service: Service, alice: Client) -> None:
    source, _ = await training(service, alice, 10)
    runs = await alice.create(spec=export(source.id, 10))
    waits = await alice.create(spec=export(source.id))
    await service.worker().claim(runs.id)
    with pytest.raises(FailedPrecondition):
        await alice.delete(source.id)
    await alice.delete(source.id, force=True)
    assert (await alice.get(waits.id)).error.reason == "DEPENDENCY_FAILED"
    again = await service.worker().claim(runs.id)
    assert [item.step for item in again.claim.source.checkpoints] == [10], "what it reads is still there"


async def test_checkpoints_in_use_are_kept_beyond_the_limit(service: Service, alice: Client) -> None:
    source, attempt = await training(service, alice, 10, spec=language_model_spec(save_total_limit=1))
    task = await alice.create(spec=export(source.id, 10))
    for step in (20, 30):
        await attempt.say(checkpoint_saved=attempt.checkpoint(step))
        await service.record_facts()
    assert [item.step for item in await alice.checkpoints(source.id)] == [10, 30]
    running = await service.worker().claim(task.id)
    await running.say(completed=running.completed())
    await service.record_facts()
    await attempt.say(checkpoint_saved=attempt.checkpoint(40))
    await service.record_facts()
    assert [item.step for item in await alice.checkpoints(source.id)] == [40]


async def test_a_repeated_checkpoint_leaves_the_one_in_use_alone(service: Service, alice: Client) -> None:
    source, attempt = await training(service, alice, 10)
    await alice.create(spec=export(source.id, 10))
    await attempt.say(failed=crashed())
    await service.record_facts()
    again = await service.worker().claim(source.id, 2)
    await again.say(checkpoint_saved=again.checkpoint(10))
    await service.record_facts()
    assert [item.attempt for item in await alice.checkpoints(source.id)] == [1, 2]
    assert [item.attempt for item in (await alice.source(source.id)).checkpoints] == [2], "the newest of a step counts"


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


async def add_dataset(service: Service, dataset_id: str) -> None:
    async with service.core.database.sessions.begin() as session:
        values = {"name": "n", "version": 1, "type": "llm", "file_name": "f", "sha256": "", "object_key": ""}
        session.add(DatasetRow(id=dataset_id, owner="alice", format="text", **values))


async def delete_dataset(service: Service, dataset_id: str) -> None:
    principal = Principal("alice", Role.USER)
    await Datasets(service.core.database).delete(principal, dataset_id)


async def test_the_data_of_the_source_stays_while_it_is_evaluated_on(service: Service, alice: Client) -> None:
    data = "d" * 26
    await add_dataset(service, data)
    spec = language_model_spec()
    spec.finetune.dataset.dataset_id = data
    source, _ = await training(service, alice, 10, end="completed", spec=spec)
    task = await alice.create(spec=evaluation(source.id))
    other = await alice.create(spec=evaluation(source.id, dataset=spec_pb2.DatasetSource(path="samples.jsonl")))
    with pytest.raises(FailedPrecondition, match=task.id):
        await delete_dataset(service, data)
    await alice.stop(task.id)
    await delete_dataset(service, data)
    assert (await alice.get(other.id)).state == PENDING
    assert await problems(alice, evaluation(source.id)) == {"spec.evaluate.dataset": f"there is no dataset {data}"}


async def test_a_dataset_for_the_importance_of_weights_must_be_there(service: Service, alice: Client) -> None:
    source, _ = await training(service, alice, 10, end="completed")
    data = spec_pb2.DatasetSource(dataset_id="e" * 26)
    found = await problems(alice, export(source.id, form=GGUF, importance_dataset=data))
    assert list(found) == ["spec.export.importance_dataset.dataset_id"]


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
    found = (await alice.page(source_task_id=second.id, with_total=True)).tasks
    assert [item.id for item in found] == [package.id, scores.id]
    one = await alice.page(source_task_id=second.id, kinds=[task_pb2.KIND_EVALUATE])
    assert [item.id for item in one.tasks] == [scores.id]
    for client, task_id in ((alice, first.id), (bob, second.id), (alice, "no\0body")):
        assert list((await client.page(source_task_id=task_id)).tasks) == []


@pytest.mark.parametrize("round_", range(4))
async def test_deleting_a_source_races_with_its_use(service: Service, alice: Client, round_: int) -> None:
    """Either the source is gone and nothing starts from it, or it stays."""
    source, _ = await training(service, alice, 10, end="completed")
    deleted, *made = await asyncio.gather(
        alice.delete(source.id), *(alice.create(spec=export(source.id)) for _ in range(4)), return_exceptions=True
    )
    accepted = [item for item in made if isinstance(item, task_pb2.Task)]
    assert all(isinstance(item, task_pb2.Task | InvalidArgument) for item in made), made
    if deleted is None:
        assert accepted == []
    else:
        assert isinstance(deleted, FailedPrecondition)
        assert accepted


@pytest.mark.parametrize("round_", range(4))
async def test_removing_a_checkpoint_races_with_its_use(service: Service, alice: Client, round_: int) -> None:
    source, attempt = await training(service, alice, 10, spec=language_model_spec(save_total_limit=1))
    await attempt.say(checkpoint_saved=attempt.checkpoint(20))
    made, _ = await asyncio.gather(
        alice.create(spec=export(source.id, 10)), service.record_facts(), return_exceptions=True
    )
    stored = [item.step for item in await alice.checkpoints(source.id)]
    if isinstance(made, task_pb2.Task):
        assert stored == [10, 20]
    else:
        assert isinstance(made, InvalidArgument)
        assert stored == [20]


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
