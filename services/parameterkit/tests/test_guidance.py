"""The documents' advice as data (T2, T3, T20, T27-T30, F21, C17, C18, C34, M3)."""

import re

import pytest

from parameterkit import BY_NAME, guidance


def cells(table: guidance.Table) -> list[list[str]]:
    return [[cell if isinstance(cell, str) else cell.en for cell in row] for row in table.rows]


def test_memory_tables_of_the_documents() -> None:
    assert cells(guidance.MEMORY_BY_METHOD)[0] == ["7B", "28 GB+", "16 GB", "6 GB"]
    assert cells(guidance.MEMORY_BY_SIZE)[3] == ["7-14B", "12 GB", "80 GB"]
    assert cells(guidance.TYPES)[1][2:] == ["4-12 hours", "8 GB", "12 GB+"]
    assert ["Qwen2-72B", "72B", "~144 GB", "large"] in cells(guidance.MODELS)


@pytest.mark.parametrize("table", [*guidance.TABLES, *guidance.CHOICES], ids=lambda table: table.title.en)
def test_tables_have_a_cell_for_each_column(table: guidance.Table) -> None:
    assert all(len(row) == len(table.columns) for row in table.rows)


@pytest.mark.parametrize(
    ("table", "parameter"), [(guidance.OPTIMIZERS, "optim"), (guidance.SCHEDULERS, "lr_scheduler_type")]
)
def test_every_choice_is_explained(table: guidance.Table, parameter: str) -> None:
    named = [name for row in cells(table) for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(named) == sorted(BY_NAME[parameter].choices)


def test_t27_five_remedies_when_memory_runs_out() -> None:
    texts = [item.en for item in guidance.OUT_OF_MEMORY.items]
    words = ("batch size", "gradient_checkpointing", "QLoRA", "sequence length", "smaller base model")
    assert len(texts) == len(words)
    assert all(word in text for word, text in zip(words, texts, strict=True))
