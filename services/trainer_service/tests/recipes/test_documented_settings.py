"""Settings that the documents advise and show in their examples, at work together (T24, C21, C23, C24)."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from parameterkit import BY_NAME, effective_defaults
from trainer_service.recipes.data_setup import prepare_data

from .conftest import CPU, JobFactory, Recorder, run

RATE, WARMUP, STEPS = 5e-3, 2, 6


def cosine(step: int) -> float:
    """The learning rate of a step of T24's schedule, by its formula."""
    if step < WARMUP:
        return RATE * step / WARMUP
    return RATE * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))


def test_t24_a_subset_first_with_warm_up_cosine_validation_and_checkpoints_that_resume(jobs: JobFactory) -> None:
    settings: dict[str, Any] = {
        "training": {
            "max_steps": STEPS,
            "learning_rate": RATE,
            "lr_scheduler_type": "cosine",
            "warmup_steps": WARMUP,
            "eval_strategy": "STEPS",
            "eval_steps": 2,
            "save_strategy": "STEPS",
            "save_steps": 3,
        },
        "language_model": {"max_samples": 12, "eval_ratio": 0.25},
    }
    whole = run(jobs(**settings))
    assert " on 9 rows, " in whole.text(), "of the 12 a quarter is held out"
    rates = whole.curve("learning_rate")
    assert rates == pytest.approx({step: cosine(step - 1) for step in range(1, STEPS + 1)})
    assert max(rates, key=lambda step: rates[step]) == WARMUP + 1
    assert list(whole.curve("eval_loss")) == [2, 4, 6]
    first, last = whole.of("checkpoint")
    assert (first["step"], last["step"]) == (3, 6)
    resumed = run(jobs(**settings, resume_from=first["path"]))
    assert resumed.curve() == {step: loss for step, loss in whole.curve().items() if step > 3}
    assert resumed.curve("eval_loss")[6] == whole.curve("eval_loss")[6]


def test_c21_rows_of_their_own_are_evaluated_and_each_thing_has_its_own_steps(
    jobs: JobFactory, dataset: Path, tmp_path: Path
) -> None:
    """The documents' distances are 500 for evaluations and checkpoints and 10 for the log."""
    names = ("eval_steps", "save_steps", "logging_steps")
    assert [effective_defaults("workflow")[name] for name in names] == [500, 500, 10]
    steps = {"max_steps": 12, "eval_steps": 4, "save_steps": 6, "logging_steps": 3}
    strategies = {"eval_strategy": "STEPS", "save_strategy": "STEPS"}
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"instruction": "Count", "input": "", "output": "one two three"}) + "\n")
    curves = []
    for validation in (dataset, other):
        events = run(jobs(training={**steps, **strategies}, validation_file=str(validation)))
        assert list(events.curve("loss")) == [1, 3, 6, 9, 12], "the first step is told too"
        assert list(events.curve("eval_loss")) == [4, 8, 12]
        assert [event["step"] for event in events.of("checkpoint")] == [6, 12]
        curves.append(events)
    assert curves[0].curve("loss") == curves[1].curve("loss"), "validation rows are not trained on"
    assert curves[0].curve("eval_loss") != curves[1].curve("eval_loss")


def test_c23_a_seed_makes_a_training_repeatable_and_is_42(jobs: JobFactory) -> None:
    dropout = {"lora": {"dropout": 0.1}}
    unnamed = run(jobs(language_model=dropout)).curve()
    assert run(jobs(training={"seed": 42}, language_model=dropout)).curve() == unnamed
    assert run(jobs(training={"seed": 43}, language_model=dropout)).curve() != unnamed


def test_c24_a_named_text_column_is_learnt_up_to_the_sequence_length(jobs: JobFactory, tmp_path: Path) -> None:
    assert effective_defaults("workflow")["max_seq_length"] == 512
    jobs.train_file = tmp_path / "articles.jsonl"
    rows = [{"title": "unread", "article": f"Article {number}. " + "More of it follows. " * 400} for number in range(3)]
    jobs.train_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    *message, column = BY_NAME["text_column"].path.split(".")
    assert message == ["dataset", "columns"]
    spec = {
        "base_model": "tiny",
        "dataset": {"columns": {column: "article"}},
        "language_model": {"objective": "OBJECTIVE_PRETRAINING", "max_seq_length": 512},
    }
    data = prepare_data(jobs(spec=spec), Recorder(), CPU)
    windows = data.rows.get(range(len(data.rows)))
    assert max(len(row.input_ids) for row in windows) == 512
    assert all((row.labels == row.input_ids).all() for row in windows), "every token is learnt"
    text = data.tokenizer.decode([token for row in windows for token in row.input_ids])
    assert "Article 0. More of it follows." in text
    assert "unread" not in text
