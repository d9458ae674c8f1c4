"""What rows mean: classes, the columns that a user names, what tools say (C25, C26)."""

from pathlib import Path
from typing import Any

import pytest

from modelkit.datasets import (
    CLASSIFICATION,
    ColumnNames,
    DataCache,
    DatasetFiles,
    JsonlDataset,
    LabelledText,
    Reading,
    locate,
    scan,
    validate,
)
from modelkit.datasets.columns import BOTH, NEITHER
from modelkit.datasets.guessing import guess_objective
from modelkit.errors import InvalidDataset
from services.modelkit.tests.dataset_files import ROWS, cache, jsonl

__all__ = ["cache"]


def classes(path: Path, rows: list[Any], **options: Any) -> Any:
    return scan(jsonl(path, rows), Reading(CLASSIFICATION, **options))


def test_classes_are_collected(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    report = classes(
        path, [{"sentence": "a", "label": 1}, {"sentence": "b", "label": 0}, {"sentence": "c", "label": 1}]
    )
    assert (report.format, report.labels, report.problems) == ("classification", {"1": 2, "0": 1}, ())
    assert JsonlDataset(report)[0] == LabelledText("a", "1")
    named = classes(path, [{"text": "a", "label": 0}, {"text": "b", "label": "bad"}], labels=("good", "bad"))
    assert named.labels == {"good": 1, "bad": 1}
    reasons = {
        "ONE_LABEL": [{"text": "a", "label": "x"}] * 3,
        "TOO_MANY_LABELS": [{"text": "a", "label": f"x{number}"} for number in range(30)],
        "WRONG_TYPE": [{"text": "a", "label": 0.5}, {"text": "b", "label": 1}, {"text": "b", "label": 2}],
        "EMPTY_LABEL": [{"text": "a", "label": " "}, {"text": "b", "label": 1}, {"text": "b", "label": 2}],
        "MISSING_COLUMNS": [{"text": "a"}],
    }
    for reason, rows in reasons.items():
        assert [problem.reason for problem in classes(path, rows).problems] == [reason]
    unknown = classes(path, [{"text": "a", "label": "z"}], labels=("x", "y"))
    assert [problem.reason for problem in unknown.problems] == ["UNKNOWN_LABEL"]


def test_classes_that_are_only_evaluated_are_told(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "train.jsonl", [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}])
    valid = jsonl(tmp_path / "valid.jsonl", [{"text": "a", "label": "x"}, {"text": "b", "label": "z"}])
    (problem,) = validate(DatasetFiles(train, valid, reading=Reading(CLASSIFICATION))).problems
    assert (problem.file, problem.reason, problem.count) == ("valid.jsonl", "UNKNOWN_LABEL", 1)
    listed = Reading(CLASSIFICATION, labels=("x", "y", "z"))
    assert validate(DatasetFiles(train, valid, reading=listed)).valid


@pytest.mark.parametrize(
    ("columns", "row", "expected"),
    [
        (ColumnNames(prompt="q", response="a"), {"q": "Hi", "a": "Hello", "output": "no"}, ["Hi", "Hello"]),
        (ColumnNames(prompt="q", response="a", system="s"), {"q": "Hi", "a": "Ho", "s": "Be"}, ["Be", "Hi", "Ho"]),
        (ColumnNames(system="s"), {"instruction": "Hi", "output": "Ho", "s": "Be"}, ["Be", "Hi", "Ho"]),
        (ColumnNames(messages="m"), {"m": [{"role": "user", "content": "Hi"}, {"role": "bot", "content": "Ho"}],
                                     "messages": 3}, ["Hi", "Ho"]),
    ],
)  # fmt: skip
def test_named_columns_win(tmp_path: Path, columns: ColumnNames, row: Any, expected: list[str]) -> None:
    """C25."""
    report = scan(jsonl(tmp_path / "a.jsonl", [row]), Reading(columns=columns))
    assert report.problems == ()
    assert [turn["content"] for turn in JsonlDataset(report)[0]] == expected


def test_a_named_system_column_is_in_some_row(tmp_path: Path) -> None:
    """C25: it is optional row by row, but a misspelt one would be passed over."""
    rows = [{"instruction": "Hi", "output": "Ho"}, {"instruction": "Hi", "output": "Ho", "s": "Be"}]
    reading = Reading(columns=ColumnNames(system="s"))
    assert scan(jsonl(tmp_path / "some.jsonl", rows), reading).problems == ()
    (problem,) = scan(jsonl(tmp_path / "none.jsonl", rows[:1]), reading).problems
    assert problem.message == 'no row has the column "s"'


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (ColumnNames(text="t", prompt="p", response="r"), BOTH),
        (ColumnNames(text="t", response="r"), BOTH),
        (ColumnNames(prompt="p"), NEITHER),
        (ColumnNames(response="r"), NEITHER),
    ],
)
def test_columns_that_contradict_each_other(
    tmp_path: Path, cache: DataCache, columns: ColumnNames, message: str
) -> None:
    """C26."""
    with pytest.raises(InvalidDataset) as caught:
        locate(jsonl(tmp_path / "a.jsonl"), cache, reading=Reading(columns=columns))
    assert [(problem.field, problem.message) for problem in caught.value.problems] == [("dataset.columns", message)]


def test_a_named_column_that_is_not_there(tmp_path: Path) -> None:
    report = scan(jsonl(tmp_path / "a.jsonl"), Reading(columns=ColumnNames(text="body")))
    assert [(problem.reason, problem.count) for problem in report.problems] == [("MISSING_COLUMNS", 600)]
    assert '"body"' in report.problems[0].message


def test_what_tools_say_stands_in_its_place(tmp_path: Path) -> None:
    turns = [("human", "Weather?"), ("function_call", '{"f": 1}'), ("observation", "rain"), ("gpt", "It rains")]
    row = {"conversations": [{"from": role, "value": text} for role, text in turns]}
    report = scan(jsonl(tmp_path / "a.jsonl", [row]))
    assert [turn["role"] for turn in JsonlDataset(report)[0]] == ["user", "assistant", "tool", "assistant"]
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hi "}, {"type": "text", "text": "you"}]}]
    parts.append({"role": "assistant", "content": "Ho"})
    report = scan(jsonl(tmp_path / "b.jsonl", [{"messages": parts}]))
    assert JsonlDataset(report)[0][0]["content"] == "Hi you"


@pytest.mark.parametrize(
    ("row", "objective"),
    [
        (ROWS[0], "SUPERVISED"),
        ({"text": "a"}, "SUPERVISED"),
        ({"text": "a", "label": 1}, "CLASSIFICATION"),
        ({"sentence": "a", "label": 1}, "CLASSIFICATION"),
        ({"content": "a"}, "PRETRAINING"),
        ({"wonder": "a"}, "SUPERVISED"),
    ],
)
def test_what_data_is_for_is_guessed(tmp_path: Path, row: Any, objective: str) -> None:
    assert guess_objective(jsonl(tmp_path / "a.jsonl", [row]), ColumnNames()) == objective
