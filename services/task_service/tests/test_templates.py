"""Templates (M35, M36): the platform's own and users' versions, and tasks that keep their own copy."""

import asyncio
from typing import Any

import pytest

from parameterkit import BY_NAME, defaults, rules
from servicekit.errors import FailedPrecondition, InvalidArgument, NotFound
from servicekit.grpc_server import violations
from servicekit.identity import Role
from services.task_service.tests.harness import Client, Service, language_model_spec
from task_service.templates.builtin import builtin_templates
from tunesmith.task.v1 import spec_pb2, task_pb2, template_service_pb2_grpc
from tunesmith.task.v1 import template_service_pb2 as pb

DEFAULT, TEMPLATE, USER = (
    task_pb2.PARAMETER_SOURCE_DEFAULT,
    task_pb2.PARAMETER_SOURCE_TEMPLATE,
    task_pb2.PARAMETER_SOURCE_USER,
)
sqlite_only = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def stub(client: Client) -> Any:
    return template_service_pb2_grpc.TemplateServiceStub(client.channel)


async def create(client: Client, name: str = "mine", **fields: Any) -> pb.Template:
    fields.setdefault("spec", parameters(learning_rate=1e-3))
    template: pb.Template = (await stub(client).CreateTemplate(pb.CreateTemplateRequest(name=name, **fields))).template
    return template


async def get(client: Client, template_id: str, version: int = 0) -> pb.Template:
    request = pb.GetTemplateRequest(template_id=template_id, version=version)
    template: pb.Template = (await stub(client).GetTemplate(request)).template
    return template


async def listed(client: Client, **fields: Any) -> list[pb.Template]:
    return list((await stub(client).ListTemplates(pb.ListTemplatesRequest(**fields))).templates)


def parameters(**training: Any) -> spec_pb2.FinetuneSpec:
    return spec_pb2.FinetuneSpec(
        training=spec_pb2.TrainingParameters(**training), language_model=spec_pb2.LanguageModelParameters()
    )


def builtin(key: str) -> pb.Template:
    return builtin_templates()[f"builtin-{key}"]


# The platform's own.


def test_every_builtin_template_keeps_to_the_contract() -> None:
    for template in builtin_templates().values():
        spec = spec_pb2.FinetuneSpec(base_model="model", dataset=spec_pb2.DatasetSource(path="data"))
        spec.MergeFrom(template.spec)
        assert violations(spec) == [], template.id
        assert rules.problems(spec) == [], template.id
        assert template.builtin
        assert template.name
        assert any("\u4e00" <= letter <= "\u9fff" for letter in template.name_zh), template.id
        assert spec.WhichOneof("modality"), template.id


def test_each_kind_of_training_has_one_template_that_forms_start_with() -> None:
    types = [template.type for template in builtin_templates().values() if template.default_of_type]
    kinds = ["sft", "pretrain", "classification", "image_classifier", "object_detector", "text_to_image"]
    assert types == kinds
    assert {template.type for template in builtin_templates().values()} == set(kinds)


def test_the_studios_defaults_are_those_of_supervised_fine_tuning() -> None:
    """M29-M33 and beyond: every value of the studio's table, but for its waves of a cosine."""
    spec = builtin("sft").spec
    for name, value in defaults("studio").items():
        if name != "lr_scheduler_num_cycles":
            found = rules.value(spec, BY_NAME[name].path)
            assert (list(found) if isinstance(value, list) else found) == value, name
    assert (spec.language_model.lora.r, spec.language_model.lora.alpha, spec.training.warmup_ratio) == (16, 16, 0.1)


def test_pretraining_has_no_adapter() -> None:
    """M34."""
    model = builtin("pretrain").spec.language_model
    assert (model.objective, model.method) == (spec_pb2.OBJECTIVE_PRETRAINING, spec_pb2.METHOD_FULL)
    assert not model.HasField("lora")


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("quick-test", (1e-4, 16, 1, 100, 10, 10, 50)),
        ("standard", (2e-4, 32, 3, -1, 100, 50, 500)),
        ("full-finetune", (5e-5, 64, 10, -1, 500, 100, 1000)),
    ],
)
def test_presets_of_fine_tuning_tasks(key: str, expected: tuple[float, ...]) -> None:
    training = builtin(key).spec.training
    assert (
        training.learning_rate,
        training.per_device_train_batch_size,
        training.num_train_epochs,
        training.max_steps,
        training.warmup_steps,
        training.logging_steps,
        training.save_steps,
    ) == expected


@pytest.mark.parametrize(
    ("key", "expected"), [("lora-7b", (8, 16, 0.05, 4, 4, 2e-4, 3)), ("lora-13b", (16, 32, 0.05, 2, 8, 1e-4, 3))]
)
def test_presets_for_models_of_a_size(key: str, expected: tuple[float, ...]) -> None:
    """T16, T17."""
    training, lora = builtin(key).spec.training, builtin(key).spec.language_model.lora
    assert (
        lora.r,
        lora.alpha,
        lora.dropout,
        training.per_device_train_batch_size,
        training.gradient_accumulation_steps,
        training.learning_rate,
        training.num_train_epochs,
    ) == expected


def test_the_preset_of_qlora() -> None:
    """C32."""
    model, training = builtin("qlora").spec.language_model, builtin("qlora").spec.training
    assert (model.method, model.lora.r, model.lora.alpha) == (spec_pb2.METHOD_QLORA, 64, 16)
    quantization = model.quantization
    assert (quantization.type, quantization.compute_dtype, quantization.double_quant) == ("nf4", "bfloat16", True)
    assert (training.learning_rate, training.num_train_epochs) == (2e-4, 1)
    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == (4, 4)
    assert (training.gradient_checkpointing, training.bf16) == (True, True)


def test_recommendations_for_pictures() -> None:
    """T5, T12."""
    classifier, detector = builtin("image-classifier").spec, builtin("object-detector").spec
    assert (classifier.base_model, classifier.image_classifier.image_size) == ("resnet50", 224)
    assert 10 <= classifier.training.num_train_epochs <= 20
    assert 8 <= classifier.training.per_device_train_batch_size <= 32
    assert classifier.training.learning_rate == 1e-4
    assert (detector.base_model, detector.object_detector.image_size) == ("yolov8n", 640)
    assert 50 <= detector.training.num_train_epochs <= 100
    assert detector.training.per_device_train_batch_size == 16


@sqlite_only
async def test_builtin_templates_are_everybodys_and_cannot_be_changed(alice: Client, bob: Client) -> None:
    for client in (alice, bob):
        assert [template.id for template in await listed(client)] == list(builtin_templates())
    assert await get(alice, "builtin-qlora") == await get(bob, "builtin-qlora", 1) == builtin("qlora")
    with pytest.raises(NotFound):
        await get(alice, "builtin-qlora", 2)
    with pytest.raises(FailedPrecondition) as caught:
        await stub(alice).DeleteTemplate(pb.DeleteTemplateRequest(template_id="builtin-sft"))
    assert caught.value.reason == "TEMPLATE_BUILTIN"


# Users' own.


async def test_versions_of_a_template(alice: Client) -> None:
    first = await create(alice, description="slow")
    second = await create(alice, spec=parameters(learning_rate=2e-3))
    other = await create(alice, "other")
    assert (first.name, first.version, first.type, first.description, first.builtin) == (
        "mine",
        1,
        "sft",
        "slow",
        False,
    )
    assert (second.id, second.version, second.description) == (first.id, 2, "")
    assert (other.id != first.id, other.version) == (True, 1)
    assert await get(alice, first.id) == second
    assert await get(alice, first.id, 1) == first
    with pytest.raises(NotFound, match="version 3"):
        await get(alice, first.id, 3)
    assert [template.id for template in await listed(alice)][len(builtin_templates()) :] == [other.id, first.id]
    assert second in await listed(alice)
    assert first not in await listed(alice)


async def test_versions_made_at_once(alice: Client) -> None:
    templates = await asyncio.gather(*(create(alice) for _ in range(6)))
    assert len({template.id for template in templates}) == 1
    assert sorted(template.version for template in templates) == [1, 2, 3, 4, 5, 6]


async def test_another_users_template_does_not_exist(service: Service, alice: Client, bob: Client) -> None:
    template = await create(alice)
    for call in (
        get(bob, template.id),
        stub(bob).DeleteTemplate(pb.DeleteTemplateRequest(template_id=template.id)),
        get(alice, "0" * 26),
        get(alice, "a\0b"),
        stub(alice).DeleteTemplate(pb.DeleteTemplateRequest(template_id="a\0b")),
    ):
        with pytest.raises(NotFound) as caught:
            await call
        assert caught.value.reason == "TEMPLATE_NOT_FOUND"
    with pytest.raises(InvalidArgument, match="there is no template") as refused:
        await bob.create(template_id=template.id)
    assert [problem.field for problem in refused.value.problems] == ["template_id"]
    assert len(await listed(bob)) == len(builtin_templates())
    assert await listed(bob, type="\0") == []
    assert (await create(bob)).id != template.id
    assert await get(service.client("root", Role.ADMIN), template.id) == template


async def test_a_deleted_template_is_gone_with_all_versions(alice: Client) -> None:
    template = await create(alice)
    await create(alice)
    await stub(alice).DeleteTemplate(pb.DeleteTemplateRequest(template_id=template.id))
    for version in (0, 1, 2):
        with pytest.raises(NotFound):
            await get(alice, template.id, version)
    assert (await create(alice)).version == 1


@sqlite_only
async def test_a_template_keeps_to_the_rules_for_what_it_sets(alice: Client) -> None:
    spec = parameters(learning_rate=-1.0, fp16=True, bf16=True)
    spec.language_model.lora.target_modules.extend(["q proj"])
    with pytest.raises(InvalidArgument) as caught:
        await create(alice, "a\nb", spec=spec, description="\0")
    assert {problem.field for problem in caught.value.problems} == {
        "spec.training.learning_rate",
        "spec.training",
        "spec.language_model.lora.target_modules[0]",
        "name",
        "description",
    }
    with pytest.raises(InvalidArgument, match="what kind") as caught:
        await create(alice, spec=spec_pb2.FinetuneSpec(training=spec_pb2.TrainingParameters(seed=1)))
    assert [problem.field for problem in caught.value.problems] == ["type"]
    kept = await create(alice, spec=spec_pb2.FinetuneSpec(training=spec_pb2.TrainingParameters(seed=1)), type="sft")
    assert kept.spec.training.seed == 1
    pictures = spec_pb2.FinetuneSpec(image_classifier=spec_pb2.ImageClassifierParameters())
    assert (await create(alice, "pictures", spec=pictures)).type == "image_classifier"


@sqlite_only
async def test_pages_of_templates(alice: Client) -> None:
    for number in range(5):
        await create(alice, f"t{number}")
    everything = [template.id for template in await listed(alice)]
    for size in (1, 3, len(builtin_templates()), 100):
        seen, token = [], ""
        while True:
            request = pb.ListTemplatesRequest(page_size=size, page_token=token)
            page = await stub(alice).ListTemplates(request)
            seen += [template.id for template in page.templates]
            if not (token := page.next_page_token):
                break
        assert seen == everything, size
    assert {template.type for template in await listed(alice, type="pretrain")} == {"pretrain"}
    assert len(await listed(alice, type="sft")) == 5 + sum(row.type == "sft" for row in builtin_templates().values())
    with pytest.raises(InvalidArgument, match="page_token"):
        await listed(alice, page_token="x")


# Tasks made with one.


async def test_a_template_fills_what_the_user_leaves_out(alice: Client) -> None:
    spec = language_model_spec(learning_rate=5e-4)
    task = await alice.create(spec=spec, template_id="builtin-lora-13b")
    training, lora = task.spec.finetune.training, task.spec.finetune.language_model.lora
    assert (training.learning_rate, training.gradient_accumulation_steps, training.seed) == (5e-4, 8, 42)
    assert (lora.r, list(lora.target_modules)) == (16, ["q_proj", "v_proj"])
    sources = task.parameter_sources
    assert sources["finetune.training.learning_rate"] == USER
    assert sources["finetune.training.gradient_accumulation_steps"] == TEMPLATE
    assert sources["finetune.language_model.lora.target_modules"] == TEMPLATE
    assert sources["finetune.training.seed"] == DEFAULT


async def test_later_changes_of_a_template_do_not_touch_tasks(alice: Client) -> None:
    """M36."""
    template = await create(alice, spec=parameters(learning_rate=1e-3))
    task = await alice.create(template_id=template.id)
    await create(alice, spec=parameters(learning_rate=9e-3))
    assert await alice.get(task.id) == task
    assert (await alice.create(template_id=template.id)).spec.finetune.training.learning_rate == 9e-3
    pinned = await alice.create(template_id=template.id, template_version=1, request_id="r1")
    assert pinned.spec.finetune.training.learning_rate == 1e-3
    await stub(alice).DeleteTemplate(pb.DeleteTemplateRequest(template_id=template.id))
    assert await alice.get(task.id) == task
    again = await alice.create(template_id=template.id, template_version=1, request_id="r1")
    assert again == pinned, "the same request is the same task, whatever became of its template"
    with pytest.raises(InvalidArgument, match="there is no template"):
        await alice.create(template_id=template.id)


@sqlite_only
async def test_a_template_may_bring_model_and_kind_of_training(alice: Client) -> None:
    spec = parameters()
    spec.base_model = "models/base"
    spec.dataset.path = "data"
    template = await create(alice, spec=spec)
    task = await alice.create(spec=spec_pb2.TaskSpec(finetune=spec_pb2.FinetuneSpec()), template_id=template.id)
    assert (task.spec.finetune.base_model, task.spec.finetune.dataset.path) == ("models/base", "data")
    assert task.parameter_sources["finetune.base_model"] == TEMPLATE
    other = language_model_spec()
    other.finetune.dataset.hub_id = "tatsu-lab/alpaca"
    task = await alice.create(spec=other, template_id=template.id)
    assert task.spec.finetune.dataset.WhichOneof("source") == "hub_id"
    with pytest.raises(InvalidArgument) as caught:
        await alice.create(spec=spec_pb2.TaskSpec(), template_id="builtin-sft")
    assert {problem.field for problem in caught.value.problems} == {"spec.finetune.base_model", "spec.finetune.dataset"}


@sqlite_only
async def test_a_surfaces_own_defaults_give_way_to_a_template(alice: Client) -> None:
    spec = language_model_spec(num_train_epochs=7, warmup_steps=100, learning_rate=1e-5)
    fields = ["finetune.training.num_train_epochs", "finetune.training.warmup_steps"]
    task = await alice.create(spec=spec, default_fields=fields, template_id="builtin-sft")
    training = task.spec.finetune.training
    assert (training.num_train_epochs, training.learning_rate, training.warmup_steps) == (2, 1e-5, 0)
    assert training.warmup_ratio == 0.1
    assert task.parameter_sources["finetune.training.num_train_epochs"] == TEMPLATE


@sqlite_only
@pytest.mark.parametrize(
    ("given", "taken", "expected"),
    [
        ({"num_train_epochs": 4}, {"max_steps": 100}, {"num_train_epochs": 4, "max_steps": -1}),
        ({"max_steps": -1}, {"num_train_epochs": 9}, {"num_train_epochs": 9, "max_steps": -1}),
        ({"warmup_ratio": 0.2}, {"warmup_steps": 50}, {"warmup_ratio": 0.2, "warmup_steps": 0}),
        ({"bf16": True}, {"fp16": True}, {"bf16": True, "fp16": False}),
        ({"bf16": False}, {"fp16": True}, {"bf16": False, "fp16": True}),
    ],
)
async def test_what_the_user_has_decided_no_template_decides_otherwise(
    alice: Client, given: dict[str, Any], taken: dict[str, Any], expected: dict[str, Any]
) -> None:
    template = await create(alice, spec=parameters(**taken))
    training = (await alice.create(spec=language_model_spec(**given), template_id=template.id)).spec.finetune.training
    assert {name: getattr(training, name) for name in expected} == expected


@sqlite_only
async def test_quantization_of_a_template_goes_with_its_method(alice: Client) -> None:
    quantized, adapting = parameters(), parameters()
    quantized.language_model.method = spec_pb2.METHOD_QLORA
    quantized.language_model.quantization.type = "fp4"
    adapting.language_model.method = spec_pb2.METHOD_LORA
    template, other = await create(alice, spec=quantized), await create(alice, "other", spec=adapting)
    spec = language_model_spec()
    spec.finetune.language_model.method = spec_pb2.METHOD_LORA
    task = await alice.create(spec=spec, template_id=template.id)
    assert not task.spec.finetune.language_model.HasField("quantization")
    assert not any("quantization" in path for path in task.parameter_sources)
    spec.finetune.language_model.ClearField("method")
    task = await alice.create(spec=spec, template_id=template.id)
    found = task.spec.finetune.language_model
    assert (found.method, found.quantization.type) == (spec_pb2.METHOD_QLORA, "fp4")
    spec.finetune.language_model.quantization.type = "int8"
    task = await alice.create(spec=spec, template_id=other.id)
    assert task.spec.finetune.language_model.method == spec_pb2.METHOD_QLORA


async def test_a_template_of_another_kind_is_refused(alice: Client) -> None:
    with pytest.raises(InvalidArgument, match="is for image classifiers, but the task trains a language model"):
        await alice.create(template_id="builtin-image-classifier")
    evaluation = spec_pb2.TaskSpec(evaluate=spec_pb2.EvaluateSpec(source_task_id="x"))
    with pytest.raises(InvalidArgument, match="templates are for training"):
        await alice.create(spec=evaluation, template_id="builtin-sft")


@sqlite_only
async def test_validate_only_shows_what_a_template_gives(alice: Client) -> None:
    task = await alice.create(template_id="builtin-lora-7b", validate_only=True)
    assert task.spec.finetune.training.gradient_accumulation_steps == 4
