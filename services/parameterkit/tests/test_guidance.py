"""The documents' advice as data (T2, T3, T20, T27-T30, F21, F31, F32, F34, C17, C18, C34, M3)."""

import re

import pytest

from parameterkit import BY_NAME, guidance


def cells(table: guidance.Table) -> list[list[str]]:
    return [[cell if isinstance(cell, str) else cell.en for cell in row] for row in table.rows]


# The documents' tables, row by row; of T2, T3 the uses are left out, of F21 the remarks.
DOCUMENTED = {
    "T2, T3": (
        guidance.TYPES,
        (2, 3, 4),
        [
            ["1-4 hours", "4 GB", "8 GB+"],
            ["4-12 hours", "8 GB", "12 GB+"],
            ["2-8 hours", "8 GB", "12 GB+"],
            ["4-24 hours", "16 GB", "24 GB+"],
            ["4-24 hours", "8 GB", "12 GB+"],
        ],
    ),
    "T20": (
        guidance.MEMORY_BY_METHOD,
        (0, 1, 2, 3),
        [
            ["7B", "28 GB+", "16 GB", "6 GB"],
            ["13B", "52 GB+", "32 GB", "10 GB"],
            ["70B", "280 GB+", "160 GB", "48 GB"],
        ],
    ),
    "M3": (
        guidance.MEMORY_BY_SIZE,
        (1, 2),
        [["4 GB", "16 GB"], ["6 GB", "24 GB"], ["8 GB", "40 GB"], ["12 GB", "80 GB"]],
    ),
    "F21": (
        guidance.MODELS,
        (0, 2),
        [
            ["LLaMA 2-7B", "~16 GB"],
            ["LLaMA 2-13B", "~24 GB"],
            ["LLaMA 2-70B", "~140 GB"],
            ["LLaMA 3-8B", "~16 GB"],
            ["LLaMA 3-70B", "~140 GB"],
            ["ChatGLM2-6B", "~14 GB"],
            ["ChatGLM3-6B", "~14 GB"],
            ["GLM-4-9B", "~20 GB"],
            ["Qwen1.5-7B", "~16 GB"],
            ["Qwen1.5-14B", "~24 GB"],
            ["Qwen2-7B", "~16 GB"],
            ["Qwen2-72B", "~144 GB"],
        ],
    ),
}


@pytest.mark.parametrize("rows", DOCUMENTED)
def test_memory_tables_of_the_documents(rows: str) -> None:
    table, columns, expected = DOCUMENTED[rows]
    assert [[row[column] for column in columns] for row in cells(table)] == expected


@pytest.mark.parametrize("table", [*guidance.TABLES, *guidance.CHOICES], ids=lambda table: table.title.en)
def test_tables_have_a_cell_for_each_column(table: guidance.Table) -> None:
    assert all(len(row) == len(table.columns) for row in table.rows)


@pytest.mark.parametrize(
    ("table", "parameter"), [(guidance.OPTIMIZERS, "optim"), (guidance.SCHEDULERS, "lr_scheduler_type")]
)
def test_every_choice_is_explained(table: guidance.Table, parameter: str) -> None:
    named = [name for row in cells(table) for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(named) == sorted(BY_NAME[parameter].choices)


def in_order(advice: guidance.Advice, *words: tuple[str, str]) -> bool:
    """Whether an advice has these items, each with its English and its Chinese word, and no others."""
    items = [(item.en, item.zh) for item in advice.items]
    return len(items) == len(words) and all(
        en in item[0] and zh in item[1] for (en, zh), item in zip(words, items, strict=True)
    )


def test_t27_f31_what_helps_when_memory_runs_out() -> None:
    """T27's five remedies, and those that F31 adds: accumulation for smaller batches, and several GPUs."""
    assert in_order(
        guidance.OUT_OF_MEMORY,
        ("batch size", "批次大小"),
        ("gradient_checkpointing", "gradient_checkpointing"),
        ("QLoRA", "QLoRA"),
        ("sequence length", "序列长度"),
        ("smaller base model", "较小的基础模型"),
        ("several GPUs", "多卡"),
    )
    first, *_, last = guidance.OUT_OF_MEMORY.items
    assert "raise gradient_accumulation_steps" in first.en
    assert "增加 gradient_accumulation_steps" in first.zh
    # Data-parallel devices hold the whole model each: only sharing it helps.
    assert "fully_sharded" in last.en
    assert "fully_sharded" in last.zh
    assert "fully_sharded" in BY_NAME["parallelism"].choices


def test_t28_t29_t30_causes_and_remedies() -> None:
    assert in_order(
        guidance.LOSS_NOT_FALLING,
        ("too low: raise", "太低：增加"),
        ("too high: lower", "太高：降低"),
        ("bad quality: clean", "质量差：清洗"),
        ("prepared wrongly", "预处理错误"),
    )
    assert in_order(
        guidance.OVERFITTING,
        ("more training data", "增加训练数据"),
        ("augmentation", "数据增强"),
        ("dropout", "Dropout"),
        ("model's complexity", "模型复杂度"),
        ("early stopping", "早停"),
    )
    assert guidance.OVERFITTING.sign is not None
    assert "training loss falls while the validation loss rises" in guidance.OVERFITTING.sign.en
    assert in_order(guidance.SLOW, ("GPU", "GPU"), ("mixed precision", "混合精度"), ("SSD", "SSD"))


def test_f32_f34_convergence_and_where_to_look_when_a_task_failed() -> None:
    assert in_order(
        guidance.CONVERGENCE,
        ("loss falls", "loss 曲线"),
        ("validation metrics", "验证集"),
        ("overfit", "过拟合"),
        ("early stopping", "早停"),
    )
    assert in_order(
        guidance.FAILED,
        ("log", "日志"),
        ("dataset's format", "数据集格式"),
        ("model's path exists", "模型路径"),
        ("GPU", "GPU"),
        ("parameters", "参数"),
    )


def test_no_advice_to_raise_what_has_no_effect() -> None:
    """The next steps of a language model are prepared ahead, whatever the number of workers."""
    texts = [text for item in guidance.SLOW.items for text in (item.en, item.zh)]
    parameter = BY_NAME["dataloader_num_workers"]
    assert "no effect" in parameter.meaning
    assert not [text for text in texts if parameter.name in text]
    assert any("SSD" in text for text in texts)
    assert "workers" not in parameter.advice_en.lower()
