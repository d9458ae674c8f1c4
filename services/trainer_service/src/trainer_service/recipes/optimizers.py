"""Optimisers and learning-rate schedules by the names that Hugging Face gives them."""

import math
from typing import Any

import torch
from torch import nn
from transformers.optimization import Adafactor, get_scheduler

from trainer_service.recipes.config import Training
from trainer_service.recipes.precision import Precision

DECAY_SHARE = 0.1
MIN_RATE = 0.1


def create_optimizer(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """The optimiser of the trainable weights; biases and norms are not decayed."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim >= 2]
    vectors = [parameter for parameter in trained if parameter.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": training.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    rate = training.learning_rate
    match training.optim:
        case "adamw_torch" | "adamw_torch_fused":  # the fused kernel computes the same, several times as fast
            return torch.optim.AdamW(groups, lr=rate, fused=True)
        case "adafactor":
            return Adafactor(groups, lr=rate, scale_parameter=False, relative_step=False)
        case "sgd":
            return torch.optim.SGD(groups, lr=rate)
        case "adagrad":
            return torch.optim.Adagrad(groups, lr=rate)
        case "rmsprop":
            return torch.optim.RMSprop(groups, lr=rate)
        case unknown:
            raise ValueError(f"optimiser {unknown!r}")


class Schedule:
    """The learning rate over so many optimiser steps."""

    def __init__(self, optimizer: torch.optim.Optimizer, training: Training, total_steps: int) -> None:
        self._follows_evaluations = training.lr_scheduler_type == "reduce_lr_on_plateau"
        options: dict[str, dict[str, Any]] = {
            "cosine_with_min_lr": {"min_lr_rate": MIN_RATE},
            "warmup_stable_decay": {"num_decay_steps": max(1, int(DECAY_SHARE * total_steps))},
        }
        self._schedule: Any = get_scheduler(
            training.lr_scheduler_type,
            optimizer,
            num_warmup_steps=training.warmup(total_steps),
            num_training_steps=total_steps,
            scheduler_specific_kwargs=options.get(training.lr_scheduler_type, {}),
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


class Optimisation:
    """Optimiser, schedule, gradient clipping and loss scaling of one training."""

    def __init__(
        self, model: nn.Module, training: Training, formats: Precision, device: torch.device, *, total_steps: int
    ) -> None:
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._max_norm = training.max_grad_norm or math.inf
        self._optimizer = create_optimizer(model, training)
        self._schedule = Schedule(self._optimizer, training, total_steps)
        self._scaler = torch.amp.GradScaler(device.type, enabled=formats.scales)

    @property
    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds of it: objects with state_dict() and load_state_dict(), by file name."""
        return {"optimizer": self._optimizer, "scheduler": self._schedule, "scaler": self._scaler}

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradients of a loss."""
        self._scaler.scale(loss).backward()

    def step(self) -> tuple[torch.Tensor, float]:
        """Changes the weights; the norm that the gradients had and the learning rate that was used."""
        self._scaler.unscale_(self._optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self._trained, self._max_norm)
        rate = self._schedule.rate
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._schedule.step()
        self._optimizer.zero_grad()
        return norm, rate

    def evaluated(self, loss: float) -> None:
        """The validation loss was measured."""
        self._schedule.evaluated(loss)
