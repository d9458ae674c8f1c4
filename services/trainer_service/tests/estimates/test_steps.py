"""Steps and checkpoints of a training before it starts."""

import dataclasses
from typing import Any

import pytest

from trainer_service.estimates.steps import Rows, checkpoints_kept, checkpoints_saved, steps
from trainer_service.recipes.config import Finetune, LanguageModel, Training


def finetune(training: Training | None = None, **parameters: Any) -> Finetune:
    return Finetune("m", "language_model", training or Training(), LanguageModel(**parameters))


def saved(total: int, seconds: float = 0.0, **training: Any) -> int:
    job = finetune(Training(max_steps=total, **training))
    return checkpoints_saved(job.training, steps(job, Rows(1000), 1), seconds)


def test_a_thousand_steps_and_a_checkpoint_each_hundred_are_ten_checkpoints() -> None:
    """M23."""
    assert saved(1000, save_steps=100) == 10


def test_what_influences_the_checkpoints() -> None:
    """M22: strategy, steps, minutes; the last step has one whatever the interval."""
    assert saved(1050, save_steps=100) == 11
    assert saved(20, save_steps=100) == 1
    assert saved(1000, save_strategy="NO") == 0
    assert saved(1000, save_strategy="EPOCH", per_device_train_batch_size=10) == 10
    assert saved(1000, seconds=3600, save_strategy="NO", save_interval_minutes=10) == 6
    assert saved(1000, seconds=3600, save_steps=500, save_interval_minutes=10) == 6
    assert saved(1000, save_strategy="NO", save_interval_minutes=10) == 0
    assert saved(3, seconds=3600, save_strategy="NO", save_interval_minutes=1) == 3


def test_only_so_many_are_kept() -> None:
    training = Training(save_total_limit=3)
    assert [checkpoints_kept(training, count) for count in (0, 2, 10)] == [0, 2, 3]
    assert checkpoints_kept(dataclasses.replace(training, save_total_limit=0), 10) == 10


@pytest.mark.parametrize(
    ("training", "parameters", "rows", "processes", "total"),
    [
        (Training(per_device_train_batch_size=4, num_train_epochs=3), {}, Rows(10), 1, 9),
        (Training(per_device_train_batch_size=4, gradient_accumulation_steps=4), {}, Rows(1000), 2, 96),
        (Training(num_train_epochs=0.5), {}, Rows(100), 1, 13),
        (Training(max_steps=7, num_train_epochs=9), {}, Rows(100), 1, 7),
        (Training(num_train_epochs=1), {"max_samples": 40}, Rows(100), 1, 10),
        (Training(num_train_epochs=1), {"eval_ratio": 0.15, "test_ratio": 0.05}, Rows(100), 1, 20),
        (Training(num_train_epochs=1), {"eval_ratio": 0.2}, Rows(100, validation_file=True), 1, 25),
        (Training(num_train_epochs=1), {"packing": True, "max_seq_length": 512}, Rows(100, mean=128), 1, 7),
        (Training(num_train_epochs=1), {}, Rows(0), 1, 0),
    ],
)
def test_steps(training: Training, parameters: dict[str, Any], rows: Rows, processes: int, total: int) -> None:
    """C20: an effective batch is per device x accumulation x devices."""
    assert steps(finetune(training, **parameters), rows, processes).total == total


def test_tokens_of_a_step() -> None:
    job = finetune(Training(per_device_train_batch_size=4, gradient_accumulation_steps=2))
    assert steps(job, Rows(100, mean=50), 1).tokens == 400
    assert steps(job, Rows(3, mean=50), 1).tokens == 150
    packed = finetune(Training(per_device_train_batch_size=4), packing=True, max_seq_length=500)
    assert steps(packed, Rows(100, mean=50), 1).tokens == 2000
