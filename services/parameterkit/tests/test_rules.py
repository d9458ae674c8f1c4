"""Which of two parameters wins, and which do not go together (C26; compat: warmup, epochs, fp16/bf16)."""

import pytest

from parameterkit import rules
from tunesmith.task.v1 import spec_pb2


def spec(**training: object) -> spec_pb2.FinetuneSpec:
    return spec_pb2.FinetuneSpec(
        training=spec_pb2.TrainingParameters(**training),  # type: ignore[arg-type]
        language_model=spec_pb2.LanguageModelParameters(),
    )


@pytest.mark.parametrize(("steps", "ratio", "expected"), [(100, 0.1, 100), (0, 0.1, 50), (0, 0.0, 0), (0, 0.001, 1)])
def test_warmup_steps_win_over_a_ratio(steps: int, ratio: float, expected: int) -> None:
    assert rules.warmup(steps, ratio, 500) == expected


@pytest.mark.parametrize(("steps", "epochs", "expected"), [(7, 3, 7), (-1, 3, 30), (0, 2.5, 25), (-1, 0.01, 1)])
def test_maximum_steps_win_over_epochs(steps: int, epochs: float, expected: int) -> None:
    assert rules.total_steps(steps, epochs, 10) == expected


def test_what_goes_together_has_no_problem() -> None:
    assert rules.problems(spec()) == []
    steps = spec_pb2.INTERVAL_STRATEGY_STEPS
    fine = spec(early_stopping_patience=3, eval_strategy=steps, lr_scheduler_type="reduce_lr_on_plateau", fp16=True)
    assert rules.problems(fine) == []


def test_every_problem_is_found_at_once() -> None:
    bad = spec(fp16=True, bf16=True, early_stopping_patience=3, lr_scheduler_type="reduce_lr_on_plateau")
    bad.language_model.eval_ratio, bad.language_model.test_ratio = 0.5, 0.5
    bad.dataset.columns.response = "r"
    found = dict(rules.problems(bad))
    assert found["training.fp16"] == "excludes training.bf16; choose one"
    assert found["training.early_stopping_patience"] == "early stopping needs training.eval_strategy other than no"
    assert set(found) == {
        "training.fp16",
        "training.early_stopping_patience",
        "training.lr_scheduler_type",
        "language_model.test_ratio",
        "dataset.columns.response",
    }


def test_what_is_not_set_counts_as_the_platforms_default() -> None:
    assert rules.value(spec(), "training.learning_rate") == 2e-4
    assert rules.value(spec(learning_rate=0.5), "training.learning_rate") == 0.5
    assert rules.value(spec(), "language_model.method") == "lora"
