"""Flat parameters under many names become one specification (T16, T17, T22, C29, C32, C33, M34)."""

from typing import Any

import protovalidate
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parameterkit import BY_NAME, SURFACES
from parameterkit.reading import Reader, read
from tunesmith.task.v1 import spec_pb2

BIG = 10**400


def problems(values: dict[str, Any], surface: str = "native", language: str = "en") -> dict[str, str]:
    return dict(read(values, surface, language).problems)


def test_t16_the_preset_of_a_7b_model() -> None:
    reading = read(
        {
            "lora_r": 8,
            "lora_alpha": 16,
            "lora_dropout": 0.05,
            "batch_size": 4,
            "gradient_accumulation_steps": 4,
            "learning_rate": 2e-4,
            "epochs": 3,
        },
        "llm_finetuning",
    )
    training, model = reading.spec.training, reading.spec.language_model
    assert (training.num_train_epochs, training.per_device_train_batch_size) == (3, 4)
    assert (training.gradient_accumulation_steps, training.learning_rate) == (4, 2e-4)
    assert (model.method, model.lora.r, model.lora.alpha) == (spec_pb2.METHOD_LORA, 8, 16)
    assert list(model.lora.target_modules) == ["q_proj", "v_proj"]
    assert "finetune.language_model.lora.r" not in reading.default_fields
    assert "finetune.language_model.max_seq_length" in reading.default_fields
    assert not reading.problems


def test_t22_qlora_keys() -> None:
    reading = read(
        {
            "use_4bit": True,
            "bnb_4bit_compute_dtype": "float16",
            "bnb_4bit_quant_type": "nf4",
            "use_nested_quant": False,
        },
        "llm_finetuning",
    )
    model = reading.spec.language_model
    assert model.method == spec_pb2.METHOD_QLORA
    assert (model.quantization.type, model.quantization.compute_dtype) == ("nf4", "float16")
    assert model.quantization.HasField("double_quant")
    assert not model.quantization.double_quant


def test_c32_the_workflows_qlora() -> None:
    reading = read(
        {
            "task": "sft",
            "peft_adapter": "lora",
            "lora_r": 64,
            "lora_alpha": 16,
            "quantization": "nf4",
            "bnb_4bit_compute_dtype": "bfloat16",
            "bnb_4bit_use_double_quant": True,
            "learning_rate": 2e-4,
            "num_epochs": 1,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 4,
            "gradient_checkpointing": True,
            "bf16": True,
        },
        "workflow",
    )
    assert not reading.problems
    assert reading.spec.language_model.method == spec_pb2.METHOD_QLORA
    assert reading.spec.training.bf16
    assert reading.spec.training.save_steps == 500, "as eval_steps"


@pytest.mark.parametrize("quantization", ["nf4", "fp4", "int4", "int8"])
def test_c33_kinds_of_quantization(quantization: str) -> None:
    model = read({"quantization": quantization}, "workflow").spec.language_model
    assert (model.method, model.quantization.type) == (spec_pb2.METHOD_QLORA, quantization)


def test_half_precision_weights_of_a_workflow_are_mixed_precision() -> None:
    reading = read({"quantization": "bf16"}, "workflow")
    assert reading.spec.training.bf16
    assert reading.spec.language_model.method == spec_pb2.METHOD_FULL
    assert "quantization" in problems({"quantization": "bf16"}, "finetuning")


@pytest.mark.parametrize(
    ("values", "method"),
    [
        ({}, "LORA"),
        ({"use_lora": True}, "LORA"),
        ({"use_lora": False}, "FULL"),
        ({"use_lora": False, "use_qlora": False}, "FULL"),
        ({"use_lora": True, "use_qlora": True}, "QLORA"),
        ({"use_qlora": True}, "QLORA"),
        ({"use_qlora": False, "method": "lora"}, "LORA"),
        ({"method": "full", "use_4bit": False}, "FULL"),
        ({"use_8bit": True}, "QLORA"),
        ({"method": "lora", "use_4bit": True}, "QLORA"),
    ],
)
def test_switches_choose_the_method(values: dict[str, Any], method: str) -> None:
    reading = read(values, "studio")
    assert reading.spec.language_model.method == spec_pb2.Method.Value(f"METHOD_{method}")
    assert not reading.problems
    assert reading.spec.language_model.HasField("lora") == (method != "FULL")


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"use_lora": False, "use_qlora": True}, "use_qlora"),
        ({"use_lora": True, "method": "full"}, "use_lora"),
        ({"peft_adapter": "none", "use_lora": True}, "peft_adapter"),
        ({"method": "qlora", "use_qlora": False}, "use_qlora"),
        ({"use_qlora": False, "load_in_4bit": True}, "use_qlora"),
        ({"use_lora": False, "use_4bit": True}, "use_lora"),
        ({"epochs": 3, "num_train_epochs": 2}, "num_train_epochs"),
        ({"optim": "sgd", "optim_8bit": True}, "optim_8bit"),
        ({"fp16": True, "bf16": True}, "fp16"),
        ({"eval_ratio": 0.6, "test_ratio": 0.5}, "test_ratio"),
        ({"text_column": "t", "prompt_column": "p", "response_column": "r"}, "text_column"),
        ({"prompt_column": "p"}, "prompt_column"),
        ({"early_stopping_patience": 3}, "early_stopping_patience"),
        ({"scheduler": "reduce_lr_on_plateau"}, "scheduler"),
    ],
)
def test_what_does_not_go_together(values: dict[str, Any], field: str) -> None:
    assert list(problems(values)) == [field]


def test_values_have_aliases_too() -> None:
    reading = read({"optim": "stable_adamw", "training_type": "pretrain", "parallelism": "FSDP", "method": "Full"})
    assert reading.spec.training.optim == "stableadamw"
    assert reading.spec.training.parallelism == spec_pb2.PARALLELISM_FULLY_SHARDED
    assert reading.spec.language_model.objective == spec_pb2.OBJECTIVE_PRETRAINING
    assert read({"optim": "schedule_free_radam"}).spec.training.optim == "schedule_free_radamw"
    assert not read({"optim": "schedule_free_radam", "optimizer": "schedule_free_radamw"}).problems


def test_an_8bit_optimiser_is_that_of_the_chosen_family() -> None:
    assert read({"use_8bit_optimizer": True}, "studio").spec.training.optim == "adamw_8bit"
    assert read({"use_8bit_optimizer": True, "optim": "galore_adamw"}).spec.training.optim == "galore_adamw_8bit"
    assert read({"use_8bit_optimizer": False}, "studio").spec.training.optim == "adamw_torch"


def test_defaults_give_way_to_what_was_given() -> None:
    training = read({"bf16": True, "warmup_ratio": 0.05}, "training").spec.training
    assert training.bf16
    assert not training.fp16
    assert not training.HasField("warmup_steps")
    assert read({"bf16": False}, "training").spec.training.fp16
    assert not read({"scheduler": "cosine"}, "studio").spec.training.HasField("lr_scheduler_num_cycles")
    assert read({"scheduler": "cosine_with_restarts"}, "studio").spec.training.lr_scheduler_num_cycles == 2


def test_evaluations_follow_from_what_asks_for_them() -> None:
    steps = spec_pb2.INTERVAL_STRATEGY_STEPS
    assert read({"eval_steps": 5}, "finetuning").spec.training.eval_strategy == steps
    assert read({"eval_ratio": 0.1}, "training").spec.training.eval_strategy == steps
    for surface in ("training", "llm_finetuning", "llm_finetuning_qlora", "finetuning"):
        assert read({}, surface).spec.training.eval_strategy == spec_pb2.INTERVAL_STRATEGY_AUTO
    assert read({"eval_strategy": "no"}, "finetuning").spec.training.eval_strategy == spec_pb2.INTERVAL_STRATEGY_NO
    assert read({"save_strategy": "auto"}, "finetuning").problems
    assert read({"eval_steps": 5}, "studio").spec.training.eval_strategy == spec_pb2.INTERVAL_STRATEGY_NO


def test_m34_pretraining_of_the_studio_trains_every_weight() -> None:
    model = read({"training_type": "pretrain"}, "studio").spec.language_model
    assert model.method == spec_pb2.METHOD_FULL
    assert not model.HasField("lora")
    model = read({"training_type": "pretrain", "use_lora": True}, "studio").spec.language_model
    assert model.method == spec_pb2.METHOD_LORA


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("/data/train.jsonl", "path"),
        ("a" * 26, "dataset_id"),
        ("s3://bucket/key", "uri"),
        ("hf://datasets/tatsu-lab/alpaca", "hub_id"),
        ("hf://tatsu-lab/alpaca", "hub_id"),
    ],
)
def test_datasets_are_named_in_many_ways(text: str, source: str) -> None:
    dataset = read({"dataset_path": text}).spec.dataset
    assert dataset.WhichOneof("source") == source
    assert getattr(dataset, source) == ("tatsu-lab/alpaca" if source == "hub_id" else text)


def test_every_problem_is_told_at_once_in_either_language() -> None:
    values = {"learning_rat": 1, "learning_rate": 5, "batch_size": 1.5, "fp16": "yes", "optim": "zigzag", "seed": "x"}
    english, chinese = problems(values), problems(values, language="zh")
    assert set(english) == set(chinese) == set(values)
    assert english["learning_rat"] == "there is no such parameter; did you mean learning_rate?"
    assert chinese["learning_rat"] == "未知参数，是否想写 learning_rate？"
    assert english["learning_rate"] == "must lie in (0, 1], not 5"
    assert chinese["batch_size"] == "应为整数，收到 1.5"
    assert "adamw_torch、" in chinese["optim"]
    assert 'not "zigzag"' in english["optim"]


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (["q proj"], '"q proj" has characters that are not allowed'),
        (["q_proj", "q_proj"], 'names "q_proj" twice'),
        (["m"] * 65, "takes up to 64 items, not 65"),
        ([1], "a list of texts was expected, not an array"),
    ],
)
def test_lists_are_checked_item_by_item(modules: list[Any], message: str) -> None:
    assert problems({"target_modules": modules}) == {"target_modules": message}


def test_what_contradicts_itself_keeps_no_other_problem_from_being_found() -> None:
    reading = read(
        {"base_model": "m", "dataset": "/d", "fp16": True, "bf16": True, "eval_ratio": 0.9, "test_ratio": 0.9}
    )
    assert len(reading.problems) == 2
    assert not protovalidate.collect_violations(reading.spec)


def test_ranges_are_the_surfaces_own() -> None:
    assert not problems({"epochs": 101})
    assert problems({"epochs": 101}, "training") == {"epochs": "must lie in [1, 100], not 101"}
    assert problems({"max_seq_length": 64}, "studio") == {"max_seq_length": "must lie in [128, 8192], not 64"}


def test_services_problems_get_the_callers_names() -> None:
    reading = read({"lr": 1e-4, "target_modules": ["x"], "use_4bit": True, "epochs": "many"})
    assert reading.name_of("spec.finetune.training.learning_rate") == "lr"
    assert reading.name_of("finetune.language_model.lora.target_modules[0]") == "target_modules"
    assert reading.name_of("finetune.language_model.method") == "use_4bit"
    assert reading.name_of("finetune.training.num_train_epochs") == "epochs"
    assert reading.name_of("finetune.dataset.dataset_id", "config") == "config.train_file"
    assert reading.name_of("request_id") == "request_id"


def test_forms_send_texts() -> None:
    form = {
        "epochs": "3",
        "learning_rate": "2e-4",
        "use_4bit": "true",
        "fp16": "0",
        "target_modules": "q_proj, v_proj",
        "lora_target_modules": '["q_proj", "v_proj"]',
        "max_length": "",
        "optim": "sgd",
        "cuda_visible_devices": "0,1",
    }
    reading = read(form, "llm_finetuning", texts=True)
    assert not reading.problems
    training, model = reading.spec.training, reading.spec.language_model
    assert (training.num_train_epochs, training.learning_rate, training.optim) == (3, 2e-4, "sgd")
    assert training.HasField("fp16")
    assert not training.fp16
    assert list(model.lora.target_modules) == ["q_proj", "v_proj"]
    assert (model.method, model.max_seq_length) == (spec_pb2.METHOD_QLORA, 512)
    form = {"labels": ["1", "2, 3"], "objective": ["classification", ""], "epochs": ["", " "]}
    reading = read(form, "training", texts=True)
    assert not reading.problems
    assert list(reading.spec.language_model.labels) == ["1", "2", "3"]
    assert reading.spec.training.num_train_epochs == 10
    wrong = dict(read({"epochs": "x", "use_4bit": "perhaps"}, "llm_finetuning", texts=True).problems)
    assert set(wrong) == {"epochs", "use_4bit"}
    assert problems({"epochs": "3"}, "llm_finetuning"), "JSON has numbers of its own"


def test_parts_of_a_request_are_told_apart() -> None:
    reader = Reader("finetuning")
    reader.take({"epochs": 1}, "arguments", names=("epochs",))
    reader.take({"num_train_epochs": 2, "epochs": 3}, "command", names=("num_train_epochs",))
    found = dict(reader.finish().problems)
    assert found["command.num_train_epochs"] == "means the same as arguments.epochs but has another value"
    assert "no such parameter" in found["command.epochs"]


SIMPLE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, BIG),
    st.floats(),
    st.text(max_size=4),
    st.sampled_from(["nf4", "qlora", "full", "0,1", "a" * 26, "s3://b/k", "steps", "cosine", "pretrain", "q_proj"]),
)


@settings(deadline=None, max_examples=300)
@given(
    st.dictionaries(st.sampled_from(sorted(BY_NAME)), SIMPLE | st.lists(SIMPLE, max_size=3), max_size=8),
    st.sampled_from(sorted(SURFACES)),
    st.booleans(),
)
def test_whatever_is_given_is_understood_or_refused(values: dict[str, Any], surface: str, texts: bool) -> None:
    reading = read({"base_model": "m", "train_file": "/d", **values}, surface, texts=texts)
    assert all(problem.field and problem.message for problem in reading.problems)
    if not reading.problems and reading.spec.base_model and reading.spec.dataset.WhichOneof("source"):
        assert not protovalidate.collect_violations(reading.spec)
        assert reading.spec.language_model.method
