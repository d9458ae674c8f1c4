"""The table of parameters: complete, unambiguous, and named as the documents name things (M25, M26, M37)."""

import re
from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import Descriptor

from parameterkit import BY_NAME, BY_PATH, PARAMETERS, defaults
from parameterkit.parameter import CATEGORIES, FOLDS, OBJECTIVES, Parameter
from parameterkit.parameter import _comments as comments
from tunesmith.task.v1 import spec_pb2

OTHER_MODALITIES = {"image_classifier", "object_detector", "text_to_image"}
DERIVED = {"per_device_eval_batch_size", "eval_steps"}


def leaves(message: Descriptor, prefix: str = "") -> Iterator[str]:
    for field in message.fields:
        if field.name in OTHER_MODALITIES:
            continue
        path = f"{prefix}{field.name}"
        if field.message_type is None:
            yield path
        else:
            yield from leaves(field.message_type, f"{path}.")


def test_every_field_of_the_language_model_side_has_a_row_and_every_row_a_field() -> None:
    assert set(leaves(spec_pb2.FinetuneSpec.DESCRIPTOR)) == set(BY_PATH)
    assert all(row.field.name == row.path.split(".")[-1] for row in PARAMETERS)


def test_no_name_means_two_parameters() -> None:
    names = [name for row in PARAMETERS for name in row.names]
    assert len(names) == len(set(names)) == len(BY_NAME)
    paths = [path for row in PARAMETERS if not row.switch for path in (row.path, *row.also)]
    assert len(paths) == len(set(paths))


@pytest.mark.parametrize("row", PARAMETERS, ids=[row.name for row in PARAMETERS])
def test_a_row_is_complete(row: Parameter) -> None:
    assert row.category in CATEGORIES
    assert row.fold in FOLDS
    assert row.label_en
    assert row.label_zh
    assert row.description_en
    assert row.description_zh
    assert bool(row.advice_en) == bool(row.advice_zh)
    assert row.type in ("integer", "number", "boolean", "text", "choice", "list", "path")
    assert (row.type == "choice") == bool(row.choices)
    assert set(row.objectives) <= set(OBJECTIVES.values())
    assert set(row.methods) <= {"full", "lora", "qlora"}
    assert set(row.words.values()) <= set(row.choices)
    assert not set(row.words) & set(row.choices)


def test_the_platforms_defaults_are_those_that_the_contract_states() -> None:
    stated = {}
    for row in PARAMETERS:
        found = re.search(r'Default:? "?([\w.-]+)', comments().get(row.field.full_name, ""))
        if not row.switch and row.name not in DERIVED and found and found[1] not in ("one",):
            stated[row.name] = found[1].rstrip(".").lower()
    assert len(stated) >= 40
    for name, text in stated.items():
        own = defaults()[name]
        assert text.removesuffix(f"_{own}").lower() == str(own).lower() or text == str(own) or float(text) == own, name
    assert set(defaults()) == set(stated)


def test_m25_categories() -> None:
    documented = {"data", "training", "lora", "optimization", "logging", "general"}
    assert {row.category for row in PARAMETERS} == documented | {"quantization"}


# The document's tables: category, then the display names in its order.
DISPLAY_NAMES = {
    "data": [
        "训练数据文件路径",
        "(可选)评估数据文件路径",
        "训练输出目录",
        "训练模型目录",
        "(可选)分词器路径",
        "(可选)恢复训练检查点路径",
        "最大样本数",
        "评估集采样比例",
    ],
    "training": [
        "批次大小",
        "梯度累积步数",
        "最大序列长度",
        "学习率",
        "优化器",
        "学习率调度器",
        "训练轮数",
        "权重衰减",
        "预热比例",
        "最大梯度范数",
        "保存策略",
        "保存步数",
        "最大保存检查点",
        "保存间隔分钟",
        "评估策略",
        "评估步数",
        "早停步数",
    ],
    "lora": [
        "使用LoRA微调",
        "LoRA的r参数",
        "LoRA的alpha参数",
        "LoRA的dropout",
        "LoRA目标模块",
        "训练后合并LoRA权重",
    ],
    "optimization": [
        "使用FP16混合精度",
        "使用BF16混合精度(NVIDIA GPU)",
        "使用TF32(NVIDIA GPU)",
        "梯度检查点",
    ],
    "logging": ["日志级别", "日志记录步数"],
    "general": ["随机种子"],
}


@pytest.mark.parametrize("category", DISPLAY_NAMES)
def test_m26_display_names_are_exactly_those_of_the_document(category: str) -> None:
    shown = [row.label_zh for row in PARAMETERS if row.category == category]
    documented = [label for label in shown if label in DISPLAY_NAMES[category]]
    assert documented == DISPLAY_NAMES[category]


def test_m37_what_matters_most_is_open_and_the_rest_is_folded() -> None:
    open_rows = {row.name for row in PARAMETERS if not row.fold}
    assert {"train_file", "base_model", "learning_rate", "num_train_epochs", "lora_r"} <= open_rows
    folds = {row.name: row.fold for row in PARAMETERS}
    assert folds["tokenizer_path"] == "optional"
    assert folds["save_steps"] == folds["save_strategy"] == folds["save_total_limit"] == "save"
    assert folds["eval_steps"] == folds["early_stopping_patience"] == "eval"
    assert folds["fp16"] == folds["gradient_checkpointing"] == "optimization"
    assert folds["adam_beta1"] == "advanced"


def test_aliases_of_the_surfaces() -> None:
    same = [
        ("epochs", "num_epochs", "num_train_epochs"),
        ("batch_size", "per_device_train_batch_size"),
        ("max_length", "max_seq_length"),
        ("use_nested_quant", "bnb_4bit_use_double_quant"),
        ("target_modules", "lora_target_modules"),
        ("optimizer", "optim"),
    ]
    for names in same:
        assert len({BY_NAME[name].name for name in names}) == 1


def test_f22_f23_t15_recommended_values_are_said() -> None:
    said = {
        "learning_rate": "5e-5 to 2e-4",
        "num_train_epochs": "3-10",
        "per_device_train_batch_size": "1-8",
        "max_seq_length": "256-2048",
        "warmup_ratio": "0.03-0.1",
        "weight_decay": "0.01",
        "gradient_checkpointing": "true",
        "lora_r": "8-64",
        "lora_alpha": "16-128",
        "lora_dropout": "0.05-0.1",
        "lora_target_modules": "q_proj, v_proj",
    }
    for name, text in said.items():
        assert text in BY_NAME[name].advice_en


def test_c17_c18_optimisers_and_schedules() -> None:
    assert {
        "adamw_torch",
        "adamw_torch_fused",
        "adamw_8bit",
        "adamw_bnb_8bit",
        "adafactor",
        "lomo",
        "galore_adamw",
        "galore_adamw_8bit",
        "grokadamw",
        "stableadamw",
        "schedule_free_radamw",
        "sgd",
        "adagrad",
        "rmsprop",
    } <= set(BY_NAME["optim"].choices)
    assert set(BY_NAME["lr_scheduler_type"].choices) == {
        "linear",
        "cosine",
        "cosine_with_restarts",
        "polynomial",
        "constant",
        "constant_with_warmup",
        "inverse_sqrt",
        "reduce_lr_on_plateau",
        "cosine_with_min_lr",
        "warmup_stable_decay",
    }
