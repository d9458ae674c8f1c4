"""Learning-rate schedules by the names that Hugging Face gives them."""

from typing import Any

import torch
from transformers.optimization import get_scheduler

from trainer_service.recipes.config import Training

DECAY_SHARE = 0.1
HALF_A_WAVE = 0.5


# Schedules that begin at the peak, whatever the warm-up.
UNWARMED = ("constant", "reduce_lr_on_plateau")


def lost_warmup(training: Training, total_steps: int) -> str:
    """What to say of a warm-up that has no effect, or never ends; else nothing."""
    warmup, name = training.warmup(total_steps), training.lr_scheduler_type
    if name in UNWARMED:
        advice = ", constant_with_warmup has" if name == "constant" else ""
        return f"{name} has no warm-up{advice}: its {warmup} steps have no effect" if warmup else ""
    if warmup <= total_steps:
        return ""
    return (
        f"warm-up takes {warmup} steps and training {total_steps}: the learning rate never reaches "
        f"{training.learning_rate:g}; lower warmup_steps"
    )


class Schedule:
    """The learning rate over so many optimiser steps."""

    def __init__(self, optimizer: torch.optim.Optimizer, training: Training, total_steps: int) -> None:
        self._follows_evaluations = training.lr_scheduler_type == "reduce_lr_on_plateau"
        warmup = training.warmup(total_steps)
        if training.lr_scheduler_type == "polynomial":
            warmup = min(warmup, total_steps - 1)  # it divides by the steps that follow
        self._schedule: Any = get_scheduler(
            training.lr_scheduler_type,
            optimizer,
            num_warmup_steps=warmup,
            num_training_steps=total_steps,
            scheduler_specific_kwargs=_options(training, total_steps, warmup),
        )

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return float(self._schedule.get_last_lr()[0])

    def step(self) -> None:
        """A step was taken."""
        if not self._follows_evaluations:
            self._schedule.step()

    def evaluated(self, loss: float) -> None:
        """The validation loss was measured."""
        if self._follows_evaluations:
            self._schedule.step(loss)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        state: dict[str, Any] = self._schedule.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self._schedule.load_state_dict(state)


def _options(training: Training, total_steps: int, warmup: int) -> dict[str, Any]:
    cycles = training.lr_scheduler_num_cycles
    match training.lr_scheduler_type:
        case "cosine":
            return {"num_cycles": cycles or HALF_A_WAVE}
        case "cosine_with_min_lr":
            return {"num_cycles": cycles or HALF_A_WAVE, "min_lr_rate": training.min_lr_rate}
        case "cosine_with_restarts":
            return {"num_cycles": cycles or 1}
        case "warmup_stable_decay":
            return {"num_decay_steps": max(1, min(int(DECAY_SHARE * total_steps), total_steps - warmup))}
    return {}
