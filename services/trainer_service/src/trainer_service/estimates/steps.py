"""How many optimiser steps and checkpoints a training has."""

import math
from dataclasses import dataclass

from trainer_service.recipes.config import Finetune, LanguageModel, Training

SECONDS_PER_MINUTE = 60


@dataclass(frozen=True, slots=True)
class Rows:
    """What is known of the data: training rows, whether validation rows have a file of their own, and the tokens of a
    row, its length cut at max_seq_length; mean and longest are 0 while unknown."""

    count: int
    validation_file: bool = False
    mean: float = 0.0
    longest: int = 0


@dataclass(frozen=True, slots=True)
class Steps:
    """Optimiser steps in all and in an epoch, the rows trained on, and the tokens of a step (0 while unknown)."""

    total: int
    per_epoch: int
    rows: int
    tokens: float


def steps(finetune: Finetune, rows: Rows, processes: int) -> Steps:
    """The steps of a training."""
    training, parameters = finetune.training, finetune.language_model
    trained = trained_rows(parameters, rows)
    sequences, length = trained, rows.mean
    if parameters.packing and rows.mean and trained:
        sequences = math.ceil(trained * rows.mean / parameters.max_seq_length)
        length = trained * rows.mean / sequences
    batch = training.per_device_train_batch_size * training.gradient_accumulation_steps * processes
    per_epoch = math.ceil(sequences / batch)
    total = training.total_steps(per_epoch)
    return Steps(total, per_epoch, trained, min(batch, sequences) * length)


def trained_rows(parameters: LanguageModel, rows: Rows) -> int:
    """Rows that are left to train on after those held out."""
    count = min(rows.count, parameters.max_samples) if parameters.max_samples else rows.count
    held_out = 0
    for ratio in (0.0 if rows.validation_file else parameters.eval_ratio, parameters.test_ratio):
        held_out += max(1, round(count * ratio)) if ratio > 0 else 0
    return max(0, count - held_out)


def checkpoints_saved(training: Training, steps: Steps, seconds: float) -> int:
    """Checkpoints that are saved in a training that takes so many seconds, 0 while that is unknown."""
    saved = 0
    if training.save_strategy != "NO" and steps.total:
        interval = steps.per_epoch if training.save_strategy == "EPOCH" else training.save_steps
        saved = math.ceil(steps.total / max(1, interval))  # the last step always has one
    if training.save_interval_minutes:
        by_time = int(seconds // (SECONDS_PER_MINUTE * training.save_interval_minutes))
        saved = min(max(saved, by_time), max(steps.total, saved))
    return saved


def checkpoints_kept(training: Training, saved: int) -> int:
    """Checkpoints that are stored at the same time."""
    return min(saved, training.save_total_limit) if training.save_total_limit else saved
