"""What a job asks for and what has no effect: it is told in the log, not passed over (F12, F25, F37, C18)."""

from pathlib import Path

import pytest

from .conftest import JobFactory, run


def test_evaluation_without_validation_rows_is_left_out_with_a_word(jobs: JobFactory) -> None:
    events = run(jobs(training={"eval_strategy": "STEPS"}))
    assert "no validation rows" in events.text()


def test_validation_rows_are_used_when_there_are_some(jobs: JobFactory, dataset: Path) -> None:
    """F25, F32: what the documented surfaces fill in where their caller says nothing of evaluations."""
    training = {"eval_strategy": "AUTO", "eval_steps": 2}
    assert 2 in run(jobs(validation_file=str(dataset), training=training)).curve("eval_loss")
    without = run(jobs(training=training))
    assert not without.curve("eval_loss")
    assert "validation rows" not in without.text()


def test_validation_rows_that_nobody_asks_for_are_told_of(jobs: JobFactory, dataset: Path) -> None:
    """F25: a valid.jsonl without an evaluation strategy."""
    events = run(jobs(validation_file=str(dataset)))
    assert "eval_strategy is no" in events.text()
    assert not events.curve("eval_loss")
    assert "eval_strategy" not in run(jobs()).text()


def test_a_ratio_that_a_file_stands_in_for_is_told_of(jobs: JobFactory, dataset: Path) -> None:
    """F25, F37."""
    ratios = {"eval_ratio": 0.25, "test_ratio": 0.25}
    given = run(jobs(validation_file=str(dataset), test_file=str(dataset), language_model=ratios)).text()
    assert "eval_ratio 0.25 has no effect: the rows of train.jsonl are used" in given
    assert "test_ratio 0.25 has no effect" in given
    assert "has no effect" not in run(jobs(language_model=ratios)).text()


@pytest.mark.parametrize(("steps", "said"), [(6, False), (7, True)])
def test_a_warm_up_longer_than_the_training_is_told_of(jobs: JobFactory, steps: int, said: bool) -> None:
    """F12: 100 steps by default, which is more than a first try on little data has."""
    text = run(jobs(training={"warmup_steps": steps})).text()
    assert (f"warm-up takes {steps} steps and training 6" in text) == said


def test_a_warm_up_that_a_schedule_does_not_have_is_told_of(jobs: JobFactory) -> None:
    """C18."""
    events = run(jobs(training={"warmup_steps": 3, "lr_scheduler_type": "constant"}))
    assert "constant has no warm-up, constant_with_warmup has: its 3 steps have no effect" in events.text()
    assert set(events.curve("learning_rate").values()) == {5e-3}
    assert "has no warm-up" not in run(jobs(training={"lr_scheduler_type": "constant"})).text()
