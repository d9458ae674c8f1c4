"""Accepting tasks: once for each request id, checked, with every default filled in."""

import asyncio
from typing import Any

import pytest

from servicekit.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Problem,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from servicekit.grpc_client import open_channel
from services.task_service.tests.harness import Client, Service, crashed, create_request, language_model_spec
from task_service.spec_check import evaluation_checker, export_checker, trainer_checker
from tunesmith.task.v1 import spec_pb2, task_pb2, task_service_pb2, task_service_pb2_grpc

DEFAULT, USER = task_pb2.PARAMETER_SOURCE_DEFAULT, task_pb2.PARAMETER_SOURCE_USER


async def test_a_task_is_accepted_and_queued(service: Service, alice: Client) -> None:
    task = await alice.create("first", description="text", labels={"surface": "native"})
    assert (task.state, task.run, task.attempt, task.number) == (task_pb2.STATE_PENDING, 1, 0, 1)
    assert (task.name, task.description, task.owner, task.pool) == ("first", "text", "alice", "default")
    assert task.owner_number == 1
    assert len(task.id) == 26
    assert task.id == task.id.lower()
    assert task.HasField("create_time")
    assert not task.HasField("start_time")
    assert dict(task.labels) == {"surface": "native"}
    assert await alice.get(task.id) == task
    await service.send_outbox()
    assert await service.queued(task) == 1
    assert await service.event_types(task.id) == ["task.created"]


async def test_events_carry_cloud_event_headers(service: Service, alice: Client) -> None:
    task = await alice.create()
    await service.send_outbox()
    replay = service.bus.replay("EVENTS", f"tunesmith.v1.task.created.{task.id}")
    message = await anext(replay)
    await replay.aclose()
    headers = message.headers
    assert headers["ce-specversion"] == "1.0"
    assert headers["ce-type"] == "tunesmith.v1.task.created"
    assert headers["ce-subject"] == task.id
    assert headers["ce-id"] == headers["Nats-Msg-Id"]


async def test_defaults_are_filled_and_remembered_as_such(alice: Client) -> None:
    spec = language_model_spec(learning_rate=1e-3, num_train_epochs=5, per_device_train_batch_size=2)
    spec.finetune.language_model.ClearField("method")
    task = await alice.create(spec=spec, default_fields=["finetune.training.num_train_epochs"])
    training = task.spec.finetune.training
    assert (training.learning_rate, training.num_train_epochs, training.seed) == (1e-3, 5, 42)
    assert (training.per_device_eval_batch_size, training.eval_steps, training.logging_steps) == (2, 10, 10)
    assert task.spec.finetune.language_model.lora.r == 8
    assert not task.spec.finetune.language_model.HasField("quantization")
    sources = task.parameter_sources
    assert sources["finetune.training.learning_rate"] == USER
    assert sources["finetune.training.num_train_epochs"] == DEFAULT
    assert sources["finetune.training.seed"] == DEFAULT
    assert sources["finetune.language_model.lora.r"] == DEFAULT
    assert sources["finetune.base_model"] == USER


async def test_full_training_has_no_adapter(alice: Client) -> None:
    spec = language_model_spec()
    spec.finetune.language_model.method = spec_pb2.METHOD_FULL
    task = await alice.create(spec=spec)
    assert not task.spec.finetune.language_model.HasField("lora")


async def test_the_same_request_makes_one_task(service: Service, alice: Client) -> None:
    first = await alice.create(request_id="r1")
    service.checker.found = [Problem("finetune.dataset.path", "gone since")]
    assert await alice.create(request_id="r1") == first
    assert (await alice.page(with_total=True)).total_size == 1


async def test_a_request_id_with_another_body_is_refused(alice: Client) -> None:
    first = await alice.create(request_id="r1")
    with pytest.raises(AlreadyExists, match="another body") as caught:
        await alice.create("other", request_id="r1")
    assert caught.value.reason == "REQUEST_ID_USED"
    assert caught.value.metadata == {"task_id": first.id}


async def test_request_ids_are_each_owners_own(alice: Client, bob: Client) -> None:
    first, second = await alice.create(request_id="r1"), await bob.create(request_id="r1")
    assert first.id != second.id


async def test_the_request_id_of_a_deleted_task_is_used(alice: Client) -> None:
    task = await alice.create(request_id="r1")
    await alice.delete(task.id)
    with pytest.raises(AlreadyExists, match="deleted"):
        await alice.create(request_id="r1")


async def test_concurrent_submits_make_one_task(service: Service, alice: Client) -> None:
    tasks = await asyncio.gather(*(alice.create(request_id="r1") for _ in range(12)))
    assert len({task.id for task in tasks}) == 1
    assert (await alice.page(with_total=True)).total_size == 1
    await service.send_outbox()
    assert await service.event_types(tasks[0].id) == ["task.created"]


async def test_concurrent_first_tasks_of_many_users(service: Service) -> None:
    clients = [service.client(f"user{index % 4}") for index in range(12)]
    tasks = await asyncio.gather(*(client.create() for client in clients))
    assert len({task.number for task in tasks}) == 12
    owners = {(task.owner, task.owner_number) for task in tasks}
    assert len(owners) == 4
    assert len({number for _, number in owners}) == 4


async def test_every_problem_is_reported_at_once(service: Service, alice: Client) -> None:
    service.checker.found = [
        Problem("finetune.base_model", "does not exist"),
        Problem("finetune.dataset.path", "is empty"),
    ]
    with pytest.raises(InvalidArgument) as caught:
        await alice.create("bad\0name", depends_on=["nothing"], labels={"": "x"})
    assert {problem.field for problem in caught.value.problems} == {
        "name",
        "labels['']",
        "depends_on[0]",
        "finetune.base_model",
        "finetune.dataset.path",
    }
    assert (await alice.page(with_total=True)).total_size == 0


async def test_ranges_are_checked_by_the_contract(alice: Client) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await alice.create(spec=language_model_spec(learning_rate=float("nan"), num_train_epochs=-1))
    fields = {problem.field for problem in caught.value.problems}
    assert fields == {"spec.finetune.training.learning_rate", "spec.finetune.training.num_train_epochs"}


async def test_breaches_of_the_contract_hide_no_other_problem(service: Service, alice: Client) -> None:
    service.checker.found = [Problem("finetune.base_model", "is a GGUF file")]
    with pytest.raises(InvalidArgument) as caught:
        await alice.create("bad\0name", spec=language_model_spec(learning_rate=5.0))
    fields = {problem.field for problem in caught.value.problems}
    assert fields == {"spec.finetune.training.learning_rate", "name", "finetune.base_model"}
    elsewhere = language_model_spec(learning_rate=5.0)
    elsewhere.finetune.image_classifier.SetInParent()
    with pytest.raises(InvalidArgument) as caught:
        await alice.create(spec=elsewhere)
    assert [problem.field for problem in caught.value.problems] == ["spec.finetune.training.learning_rate", "spec"]


async def test_validate_only_creates_nothing(service: Service, alice: Client) -> None:
    task = await alice.create(validate_only=True, request_id="r1")
    assert task.id == ""
    assert task.spec.finetune.training.seed == 42
    assert (await alice.page(with_total=True)).total_size == 0
    service.checker.found = [Problem("finetune.dataset.path", "is empty")]
    with pytest.raises(InvalidArgument):
        await alice.create(validate_only=True)


async def test_what_both_services_refuse_is_told_once(service: Service, alice: Client) -> None:
    spec = language_model_spec()
    spec.finetune.dataset.dataset_id = "0" * 26
    service.checker.found = [Problem("spec.finetune.dataset.dataset_id", "is nothing that this trainer can find")]
    with pytest.raises(InvalidArgument) as caught:
        await alice.create(spec=spec)
    (problem,) = caught.value.problems
    assert problem.field == "spec.finetune.dataset.dataset_id"
    assert "trainer" not in problem.message


def finetune(**fields: object) -> spec_pb2.TaskSpec:
    spec = language_model_spec()
    spec.finetune.ClearField("language_model")
    spec.finetune.MergeFrom(spec_pb2.FinetuneSpec(**fields))  # type: ignore[arg-type]
    return spec


LM = spec_pb2.LanguageModelParameters


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (
            spec_pb2.TaskSpec(prepare=spec_pb2.PrepareSpec(dataset=spec_pb2.DatasetSource(path="d"))),
            "KIND_NOT_AVAILABLE",
        ),
        (finetune(image_classifier=spec_pb2.ImageClassifierParameters()), "MODALITY_NOT_AVAILABLE"),
        (finetune(object_detector=spec_pb2.ObjectDetectorParameters()), "MODALITY_NOT_AVAILABLE"),
        (finetune(text_to_image=spec_pb2.TextToImageParameters()), "MODALITY_NOT_AVAILABLE"),
    ],
)
async def test_what_this_version_cannot_do_is_said(alice: Client, spec: spec_pb2.TaskSpec, reason: str) -> None:
    with pytest.raises(Unimplemented) as caught:
        await alice.create(spec=spec)
    assert caught.value.reason == reason


async def test_the_trainer_is_asked_on_behalf_of_the_caller(service: Service, alice: Client) -> None:
    """Fault 53: with the service's own identity it would tell of other people's datasets."""
    await alice.create()
    (identity,) = service.checker.identities
    assert identity["authorization"].startswith("Bearer ")


async def test_the_trainer_may_refuse_too(service: Service, alice: Client) -> None:
    service.checker.error = Unimplemented("no tensor cores", reason="METHOD_NOT_AVAILABLE")
    with pytest.raises(Unimplemented, match="no tensor cores"):
        await alice.create()


@pytest.mark.parametrize("checker", [trainer_checker, evaluation_checker, export_checker])
async def test_a_service_that_cannot_be_reached_does_not_block(unused_tcp_port: int, checker: Any) -> None:
    channel = open_channel(f"127.0.0.1:{unused_tcp_port}")
    spec, source = language_model_spec(), task_service_pb2.TaskSource()
    assert await checker(channel, 5.0).problems(spec, source, None) == []
    await channel.close()


async def test_an_error_of_the_trainer_is_not_taken_for_consent(service: Service, alice: Client) -> None:
    service.checker.error = FailedPrecondition("the trainer is misconfigured")
    with pytest.raises(FailedPrecondition):
        await alice.create()


async def test_the_output_of_a_task_needs_a_dependency(alice: Client) -> None:
    first = await alice.create()
    spec = language_model_spec()
    spec.finetune.base_model = f"task:{first.id}"
    with pytest.raises(InvalidArgument, match="depends_on"):
        await alice.create(spec=spec)
    assert (await alice.create(spec=spec, depends_on=[first.id])).depends_on == [first.id]


async def test_a_training_goes_on_from_another_tasks_stored_checkpoint(
    service: Service, alice: Client, bob: Client
) -> None:
    """M7, C39: by the path that lists of checkpoints show; it stays until the training has ended."""
    first = await alice.create()
    attempt = await service.worker().claim(first.id)
    for step in (5, 10):
        await attempt.say(checkpoint_saved=attempt.checkpoint(step))
    await attempt.say(completed=attempt.completed())
    await service.record_facts()
    spec = language_model_spec()
    spec.finetune.resume_from_checkpoint = f"tasks/{first.id}/attempts/1/checkpoint-5"
    with pytest.raises(InvalidArgument, match="no stored checkpoint"):
        await bob.create(spec=spec)
    second = await alice.create(spec=spec)
    claim = (await service.worker().claim(second.id)).claim
    assert [(item.task_id, item.step) for item in claim.resume_from] == [(first.id, 5)]
    assert claim.resume_exact
    with pytest.raises(FailedPrecondition, match="in use"):
        await alice.delete(first.id)
    other = language_model_spec(optim="sgd", learning_rate=1e-3)
    other.finetune.resume_from_checkpoint = spec.finetune.resume_from_checkpoint
    with pytest.raises(InvalidArgument, match=r"training\.optim was 'adamw_torch' there and is 'sgd' now$"):
        await alice.create(spec=other)
    other = language_model_spec(
        lr_scheduler_type="reduce_lr_on_plateau", eval_strategy=spec_pb2.INTERVAL_STRATEGY_STEPS
    )
    other.finetune.resume_from_checkpoint = spec.finetune.resume_from_checkpoint
    with pytest.raises(InvalidArgument, match=r"training\.lr_scheduler_type was 'linear' there and is 'reduce_lr_on"):
        await alice.create(spec=other)
    spec.finetune.resume_from_checkpoint = f"tasks/{first.id}/attempts/1/checkpoint-7"
    with pytest.raises(InvalidArgument, match="checkpoint-7"):
        await alice.create(spec=spec)


async def test_a_training_prefers_its_own_checkpoints(service: Service, alice: Client) -> None:
    first = await alice.create()
    attempt = await service.worker().claim(first.id)
    await attempt.say(checkpoint_saved=attempt.checkpoint(5))
    await attempt.say(completed=attempt.completed())
    await service.record_facts()
    spec = language_model_spec()
    spec.finetune.resume_from_checkpoint = f"tasks/{first.id}/attempts/1/checkpoint-5"
    task = await alice.create(spec=spec)
    running = await service.worker().claim(task.id)
    await running.say(checkpoint_saved=running.checkpoint(8))
    await running.say(failed=crashed())
    await service.record_facts()
    claim = (await service.worker().claim(task.id, 2)).claim
    assert [(item.task_id, item.step) for item in claim.resume_from] == [(task.id, 8)]
    assert not claim.resume_exact


async def test_quantization_means_qlora(alice: Client) -> None:
    """As on the documented surfaces; a method that is named has the last word, and the trainer judges it."""
    spec = language_model_spec()
    spec.finetune.language_model.quantization.type = "int8"
    assert (await alice.create(spec=spec)).spec.finetune.language_model.method == spec_pb2.METHOD_FULL
    spec.finetune.language_model.ClearField("method")
    task = await alice.create(spec=spec)
    language_model = task.spec.finetune.language_model
    assert (language_model.method, language_model.quantization.type) == (spec_pb2.METHOD_QLORA, "int8")
    assert language_model.quantization.compute_dtype == "bfloat16"
    assert task.parameter_sources["finetune.language_model.method"] == DEFAULT


async def test_only_what_makes_a_model_can_be_trained_on(alice: Client) -> None:
    """An adapter would be found out only when its training has ended, which may be hours later."""
    spec, adapter = language_model_spec(), language_model_spec()
    adapter.finetune.language_model.method = spec_pb2.METHOD_LORA
    source = await alice.create(spec=adapter)
    formats = (spec_pb2.EXPORT_FORMAT_MERGED, spec_pb2.EXPORT_FORMAT_GGUF)
    merged, gguf = [
        await alice.create(spec=spec_pb2.TaskSpec(export=spec_pb2.ExportSpec(source_task_id=source.id, format=form)))
        for form in formats
    ]
    for task, message in ((source, "trains an adapter"), (gguf, "EXPORT_FORMAT_GGUF")):
        spec.finetune.base_model = f"task:{task.id}"
        with pytest.raises(InvalidArgument, match=message):
            await alice.create(spec=spec, depends_on=[task.id])
    adapter.finetune.language_model.merge_after_training = True
    for output, path in (("/models/mine", "/models/mine/merged"), ("", "the directory merged/ in its output")):
        adapter.finetune.output_dir = output
        merging = await alice.create(spec=adapter)
        spec.finetune.base_model = f"task:{merging.id}"
        with pytest.raises(InvalidArgument, match=path):
            await alice.create(spec=spec, depends_on=[merging.id])
    spec.finetune.base_model = f"task:{merged.id}"
    assert (await alice.create(spec=spec, depends_on=[merged.id])).depends_on == [merged.id]


async def test_dependencies_must_be_the_callers_own(alice: Client, bob: Client) -> None:
    foreign = await bob.create()
    with pytest.raises(InvalidArgument, match="there is no task"):
        await alice.create(depends_on=[foreign.id])


async def test_nothing_without_a_token(service: Service) -> None:
    channel = open_channel(service.target)
    stub = task_service_pb2_grpc.TaskServiceStub(channel)
    with pytest.raises(Unauthenticated):
        await stub.CreateTask(create_request())
    await channel.close()


async def test_another_users_task_does_not_exist(service: Service, alice: Client, bob: Client) -> None:
    task = await alice.create()
    for call in (bob.get(task.id), bob.stop(task.id), bob.resume(task.id), bob.delete(task.id, True)):
        with pytest.raises(NotFound, match="there is no task"):
            await call
    with pytest.raises(NotFound):
        await bob.checkpoints(task.id)
    with pytest.raises(NotFound):
        await bob.stub.GetTask(task_service_pb2.GetTaskRequest(number=task.number))
    assert (await alice.stub.GetTask(task_service_pb2.GetTaskRequest(number=task.number))).task == task


async def test_get_needs_exactly_one_id(alice: Client) -> None:
    for request in (task_service_pb2.GetTaskRequest(), task_service_pb2.GetTaskRequest(task_id="x", number=1)):
        with pytest.raises(InvalidArgument):
            await alice.stub.GetTask(request)


async def test_unavailable_is_not_an_answer_of_the_checker(service: Service, alice: Client) -> None:
    service.checker.error = Unavailable("a checker must not let this through")
    with pytest.raises(Unavailable):
        await alice.create()
