"""Creating tasks on the routes of the fine-tuning tasks document (F4, F5, F9-F14, F23, F30, F35, F36)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import protovalidate
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.finetuning.arguments import ARGUMENTS, KNOWN_NAMES
from gateway.finetuning.create import Creation
from parameterkit import Parameter
from servicekit.errors import FailedPrecondition, InvalidArgument, NotFound, Problem, Unavailable, Unimplemented
from tunesmith.task.v1 import spec_pb2

EXAMPLE = {
    "name": "my_finetuning_task",
    "description": "ChatGLM3 医疗问答微调",
    "baseModel": "THUDM/chatglm3-6b",
    "datasetPath": "/data/medicalqa",
    "outputPath": "/output/medical_chatglm3",
    "trainingArgs": {
        "num_train_epochs": 5,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 4,
        "learning_rate": 2e-4,
        "max_seq_length": 512,
    },
    "gpuConfig": {"cuda_visible_devices": "0,1"},
}
MINIMAL = {"name": "n", "baseModel": "m", "datasetPath": "/d"}


async def created(gateway: Any, **body: Any) -> Any:
    """The request that the task service got for a body."""
    code, _, message = await gateway.finetuning("POST", "createTask", json={**MINIMAL, **body})
    assert code == 0, message
    return gateway.tasks.requests[-1]


async def created_model(gateway: Any, **arguments: Any) -> Any:
    """The language model's parameters that the task service got."""
    return (await created(gateway, trainingArgs=arguments)).spec.finetune.language_model


async def refused(gateway: Any, **body: Any) -> str:
    """The message for a body that is refused."""
    content = json.dumps({**MINIMAL, **body})
    code, data, message = await gateway.finetuning("POST", "createTask", content=content)
    assert (code, data) == (7, {})
    assert message.startswith("创建任务失败: ")
    assert gateway.tasks.requests[-1].validate_only
    return message


@pytest.mark.parametrize("prefix", ["", "/api"])
async def test_f36_the_request_example_verbatim(gateway: Any, prefix: str) -> None:
    answer = await gateway.finetuning("POST", "createTask", prefix, json=EXAMPLE)
    assert answer == (0, {"ID": 7}, "任务创建成功，已在后台开始执行")
    request = gateway.tasks.requests[-1]
    spec = request.spec.finetune
    assert (request.name, request.description) == ("my_finetuning_task", "ChatGLM3 医疗问答微调")
    assert spec.base_model == "THUDM/chatglm3-6b"
    assert spec.dataset.path == "/data/medicalqa"
    assert spec.output_dir == "/output/medical_chatglm3"
    assert spec.devices.cuda_visible_devices == "0,1"
    assert (spec.training.num_train_epochs, spec.training.gradient_accumulation_steps) == (5, 4)
    assert "finetune.training.num_train_epochs" not in request.default_fields
    assert "finetune.training.save_steps" in request.default_fields
    assert not request.validate_only
    assert request.request_id


async def test_f12_defaults(gateway: Any) -> None:
    request = await created(gateway)
    training, model = request.spec.finetune.training, request.spec.finetune.language_model
    assert training.num_train_epochs == 3
    assert training.per_device_train_batch_size == 4
    assert training.gradient_accumulation_steps == 1
    assert training.learning_rate == 2e-4
    assert training.warmup_steps == 100
    assert training.logging_steps == 10
    assert training.save_steps == 500
    assert model.max_seq_length == 512
    assert model.method == spec_pb2.METHOD_LORA
    assert (model.lora.r, model.lora.alpha, model.lora.dropout) == (8, 16, 0.05)
    assert (training.eval_strategy, training.eval_steps) == (spec_pb2.INTERVAL_STRATEGY_AUTO, 500)
    assert len(request.default_fields) == 14
    assert not training.HasField("weight_decay"), "what the document does not name is the platform's business"


async def test_aliases_mean_the_same(gateway: Any) -> None:
    arguments = {"epochs": 2, "batch_size": 3, "max_length": 64, "target_modules": ["q_proj"], "use_nested_quant": True}
    request = await created(gateway, trainingArgs={**arguments, "use_4bit": True, "num_train_epochs": 2.0})
    spec = request.spec.finetune
    assert (spec.training.num_train_epochs, spec.training.per_device_train_batch_size) == (2, 3)
    assert spec.language_model.max_seq_length == 64
    assert list(spec.language_model.lora.target_modules) == ["q_proj"]
    assert spec.language_model.method == spec_pb2.METHOD_QLORA
    assert spec.language_model.quantization.type == "nf4"
    assert spec.language_model.quantization.double_quant


# Columns that mean nothing alone.
GO_WITH = {"prompt_column": {"response_column": "y"}, "response_column": {"prompt_column": "y"}}


def other_than_usual(row: Parameter) -> Any:
    """A value that a parameter takes."""
    if row.type == "integer":
        return int(row.limits.at_least or 0) + 3
    values = {"boolean": True, "number": 0.375, "list": ["x"]}
    return row.choices[-1] if row.type == "choice" else values.get(row.type, "x")


def set_in(spec: Any, row: Parameter) -> Any:
    """What a spec says of a parameter; of a choice its last word, in lower case."""
    for name in row.path.split("."):
        spec = getattr(spec, name)
    if row.field.enum_type is not None:
        return row.field.enum_type.values_by_number[spec].name.lower()
    return list(spec) if row.type == "list" else spec


async def test_f5_every_parameter_can_be_set_under_each_of_its_names(gateway: Any) -> None:
    for row in (row for row in ARGUMENTS if not row.switch):
        value = other_than_usual(row)
        with_it = GO_WITH.get(row.name, {"method": "qlora"} if row.methods == ("qlora",) else {})
        for name in row.names:
            request = await created(gateway, trainingArgs={name: value, **with_it})
            told = set_in(request.spec.finetune, row)
            assert told.endswith(value) if isinstance(value, str) else told == value, name
            assert f"finetune.{row.path}" not in request.default_fields, f"{name} came from the caller"


@pytest.mark.parametrize(
    "arguments",
    [
        {"epochs": 2, "num_train_epochs": 3},
        {"batch_size": 2, "per_device_train_batch_size": 4},
        {"max_length": 256, "max_seq_length": 512},
        {"use_4bit": True, "quantization": "int8"},
        {"use_4bit": False, "quantization": "nf4"},
        {"use_4bit": True, "use_8bit": True},
        {"bnb_4bit_quant_type": "fp4", "quantization": "nf4"},
        {"use_nested_quant": True, "bnb_4bit_use_double_quant": False},
        {"fp16": True, "bf16": True},
        {"method": "full", "use_4bit": True},
    ],
)
async def test_both_given_and_unequal_is_an_error(gateway: Any, arguments: dict[str, Any]) -> None:
    message = await refused(gateway, trainingArgs=arguments)
    assert f"trainingArgs.{list(arguments)[-1]}" in message or f"trainingArgs.{next(iter(arguments))}" in message


async def test_methods(gateway: Any) -> None:
    methods = {
        "full": spec_pb2.METHOD_FULL,
        "LoRA": spec_pb2.METHOD_LORA,
        "qlora": spec_pb2.METHOD_QLORA,
    }
    for word, method in methods.items():
        model = await created_model(gateway, method=word, lora_r=4)
        assert model.method == method
        assert model.HasField("lora") == (word != "full"), "a form may send every field"
    model = await created_model(gateway, use_8bit=True)
    assert (model.method, model.quantization.type) == (spec_pb2.METHOD_QLORA, "int8")
    model = await created_model(gateway, quantization="none", use_4bit=False)
    assert model.method == spec_pb2.METHOD_LORA


async def test_a_ratio_is_not_shadowed_by_the_default_of_warmup_steps(gateway: Any) -> None:
    training = (await created(gateway, trainingArgs={"warmup_ratio": 0.1})).spec.finetune.training
    assert training.warmup_ratio == 0.1
    assert not training.warmup_steps


async def test_f4_f13_gpu_config(gateway: Any) -> None:
    config = {"cuda_visible_devices": [0, 1], "memory_optimization": True, "processes": 2}
    spec = (await created(gateway, gpuConfig=config)).spec.finetune
    assert spec.devices.cuda_visible_devices == "0,1"
    assert spec.devices.processes == 2
    assert spec.training.gradient_checkpointing
    spec = (await created(gateway, gpuConfig={"cuda_visible_devices": 0})).spec.finetune
    assert spec.devices.cuda_visible_devices == "0"
    message = await refused(
        gateway,
        gpuConfig={"cuda_visible_devices": "gpu0", "memory_optimisation": "yes", "cuda_devices": "0", "processes": 0},
    )
    for name in ("cuda_visible_devices", "memory_optimisation", "cuda_devices", "processes"):
        assert f"gpuConfig.{name}" in message
    contradiction = {"gpuConfig": {"memory_optimization": True}, "trainingArgs": {"gradient_checkpointing": False}}
    assert "gpuConfig.memory_optimization" in await refused(gateway, **contradiction)


async def test_every_problem_is_reported_at_once(gateway: Any) -> None:
    gateway.tasks.spec_problems = [
        Problem("spec.finetune.dataset.path", "line 3 is not JSON"),
        Problem("spec.finetune.training.learning_rate", "hidden by what was found before"),
    ]
    body = """{"name": " ", "baseModel": 4, "datasetPath": "/d", "outputpath": "/o", "trainingArgs": {"learning_rat": 1,
        "learning_rate": NaN, "num_train_epochs": -1, "per_device_train_batch_size": 1.5, "fp16": "yes", "seed": "x",
        "optim": 3, "save_strategy": "often", "max_seq_length": 99999999999, "lora_dropout": Infinity,
        "lora_target_modules": [1]}}"""
    code, _, message = await gateway.finetuning("POST", "createTask", content=body)
    assert code == 7
    assert "共 15 个问题" in message
    for text in (
        "name: 必填",
        "baseModel: 应为字符串，收到 4",
        "outputpath: 未知字段，是否想写 outputPath？",
        "trainingArgs.learning_rat: 未知参数，是否想写 learning_rate？",
        "trainingArgs.learning_rate: 应在 (0, 1] 范围内，收到 NaN",
        "trainingArgs.num_train_epochs: 应在 (0, 1000] 范围内，收到 -1",
        "trainingArgs.per_device_train_batch_size: 应为整数，收到 1.5",
        "trainingArgs.fp16: 应为 true 或 false",
        "trainingArgs.seed: 应为数字",
        "trainingArgs.optim: 应为字符串",
        "trainingArgs.save_strategy: 应为 no、steps、epoch 之一",
        "trainingArgs.max_seq_length: 应在 [8, 1048576] 范围内",
        "trainingArgs.lora_dropout: 应在 [0, 1) 范围内，收到 Infinity",
        "trainingArgs.lora_target_modules: 应为字符串数组",
        "datasetPath: line 3 is not JSON",
    ):
        assert text in message
    assert "hidden" not in message


async def test_missing_fields(gateway: Any) -> None:
    code, _, message = await gateway.finetuning("POST", "createTask", json={})
    assert code == 7
    assert message == "创建任务失败: 共 3 个问题: name: 必填; baseModel: 必填; datasetPath: 必填"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff\xfe", b'"x"', b"[" * 100_000, b'{"\\ud800": 1}'])
async def test_bodies_that_are_no_object(gateway: Any, body: bytes) -> None:
    code, data, message = await gateway.finetuning("POST", "createTask", content=body)
    assert (code, data) == (7, {})
    assert message.startswith("创建任务失败: 请求体")


async def test_texts_that_cannot_be_kept(gateway: Any) -> None:
    message = await refused(gateway, name="x" * 201, description="a\0b", trainingArgs="x" * 9)
    assert "name: 最多 200 个字符" in message
    assert "description: 含有无法保存的字符" in message
    assert "trainingArgs: 应为 JSON 对象" in message


async def test_problems_of_the_services_have_the_callers_names(gateway: Any) -> None:
    gateway.tasks.error = InvalidArgument(
        problems=[
            Problem("spec.finetune.base_model", "does not exist"),
            Problem("finetune.devices.cuda_visible_devices", "there is no GPU 1"),
            Problem("spec.finetune.language_model.lora.r", "too large"),
            Problem("spec.finetune.output_dir", "outside"),
        ]
    )
    _, _, message = await gateway.finetuning("POST", "createTask", json=MINIMAL)
    names = ("baseModel", "gpuConfig.cuda_visible_devices", "trainingArgs.lora_r", "outputPath")
    assert all(f"{name}: " in message for name in names)
    messages = {
        Unimplemented("image classifiers come later"): "image classifiers come later",
        NotFound("dataset 5 does not exist"): "dataset 5 does not exist",
        Unavailable("connection refused"): "服务暂时不可用，请稍后重试",
        FailedPrecondition(
            "the checkpoint quota is spent",
            reason="QUOTA_EXHAUSTED",
            metadata={"reset_time": "2026-12-01T00:00:00+00:00"},
        ): "配额已用尽，2026-12-01 重置；可联系管理员提高配额，或将 save_strategy 设为 no",
    }
    for error, message in messages.items():
        gateway.tasks.error = error
        answer = await gateway.finetuning("POST", "createTask", json=MINIMAL)
        assert answer == (7, {}, f"创建任务失败: {message}")


async def test_dataset_addresses(gateway: Any) -> None:
    assert (await created(gateway, datasetPath="s3://b/k")).spec.finetune.dataset.uri == "s3://b/k"
    assert (await created(gateway, datasetPath="a" * 26)).spec.finetune.dataset.dataset_id == "a" * 26


async def test_commands_are_refused_unless_allowed(
    gateway: Any, start_gateway: Callable[..., Any], tmp_path: Path
) -> None:
    assert "command: 本部署不接受自定义命令" in await refused(gateway, command="python train.py")
    assert (await created(gateway, command="")).spec.HasField("finetune")
    command = "CUDA_VISIBLE_DEVICES=0 python train.py --learning-rate 1e-3 --fp16 --epochs=2 --set lora_r=4 ; rm -rf /"
    (tmp_path / "other").mkdir()
    async with start_gateway(tmp_path / "other", finetuning_command=True) as trusting:
        request = await created(trusting, command=command)
        training = request.spec.finetune.training
        assert (training.learning_rate, training.fp16, training.num_train_epochs) == (1e-3, True, 2)
        assert request.spec.finetune.language_model.lora.r == 4
        assert request.labels["finetuning.command"].startswith("CUDA_VISIBLE_DEVICES=0 python train.py")
        message = await refused(trusting, command="python train.py --learning_rat 1", trainingArgs={"epochs": 3})
        assert "command.learning_rat: 未知参数" in message
        message = await refused(trusting, command=["x", "--epochs", "2"], trainingArgs={"epochs": 3})
        assert "command.epochs: 与 trainingArgs.epochs 含义相同但取值不同" in message


async def test_what_was_sent_is_shown_again(gateway: Any) -> None:
    await gateway.finetuning("POST", "createTask", json=EXAMPLE)
    _, task, _ = await gateway.finetuning("GET", "getTask", params={"id": 7})
    assert json.loads(task["trainingArgs"]) == EXAMPLE["trainingArgs"]
    assert json.loads(task["gpuConfig"]) == EXAMPLE["gpuConfig"]
    # A task that is sent back as it was shown is the same task again.
    code, _, message = await gateway.finetuning("POST", "createTask", json={**task, "command": None})
    assert code == 0, message
    assert gateway.tasks.requests[-1].spec.finetune.training.num_train_epochs == 5


async def test_an_idempotency_key_is_the_request_id(gateway: Any) -> None:
    for _ in range(2):
        await gateway.finetuning("POST", "createTask", json=MINIMAL, headers={"idempotency-key": "key-1"})
        assert gateway.tasks.requests[-1].request_id == "key-1"


TOP_NAMES = [*EXAMPLE, "command", "ID", "x"]
ARGUMENT_NAMES = [*KNOWN_NAMES, "cuda_visible_devices", "memory_optimization", "processes", "x"]
SIMPLE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 10**400),
    st.floats(),
    st.text(max_size=4),
    st.sampled_from(["nf4", "qlora", "full", "0,1", "--epochs=3", "a" * 26, "s3://b/k", '{"epochs": 1}', "steps"]),
)
ANY_ARGUMENTS = st.dictionaries(st.sampled_from(ARGUMENT_NAMES), SIMPLE | st.lists(SIMPLE, max_size=2), max_size=6)


@settings(deadline=None, max_examples=300)
@given(st.dictionaries(st.sampled_from(TOP_NAMES), SIMPLE | ANY_ARGUMENTS, max_size=8), st.booleans(), st.booleans())
def test_any_body_is_understood_or_refused(document: dict[str, Any], complete: bool, command_allowed: bool) -> None:
    creation = Creation({**document, **MINIMAL} if complete else document, command_allowed)
    creation.request.SerializeToString()
    assert all(problem.field and problem.message for problem in creation.problems)
    if not creation.problems:
        assert creation.request.spec.finetune.language_model.method
        assert not protovalidate.collect_violations(creation.request)


async def test_a_stop_has_the_documented_ten_seconds(gateway: Any) -> None:
    assert (await created(gateway)).labels["stop_grace_seconds"] == "10"
