"""Optimisers by the names that Hugging Face gives them, and the step that they take."""

import math
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedModel
from transformers.optimization import Adafactor

from trainer_service.recipes.config import Training
from trainer_service.recipes.fused_backward import Lomo
from trainer_service.recipes.precision import Precision
from trainer_service.recipes.schedules import Schedule
from trainer_service.recipes.support import OPTIMIZER_ALIASES
from workerkit.child.errors import InvalidJob

Groups = list[dict[str, Any]]


def notes(training: Training, device: torch.device) -> list[str]:
    """What differs from the wish on a device."""
    if device.type == "cuda" or not training.optim.startswith("paged"):
        return []
    plain = OPTIMIZER_ALIASES.get(training.optim, training.optim).removeprefix("paged_").removesuffix("_32bit")
    return [f"{training.optim} needs a GPU to page its state from; it trains as {plain}, with all of it in memory"]


def create_optimizer(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """The optimiser of the trainable weights; biases and norms are not decayed."""
    name = OPTIMIZER_ALIASES.get(training.optim, training.optim)
    groups = _groups(model, training, projects=name.startswith("galore"))
    rate = training.learning_rate
    match name:
        case "adafactor":
            return Adafactor(groups, lr=rate, scale_parameter=False, relative_step=False)
        case "sgd":
            return torch.optim.SGD(groups, lr=rate)
        case "adagrad":
            return torch.optim.Adagrad(groups, lr=rate)
        case "rmsprop":
            return torch.optim.RMSprop(groups, lr=rate)
        case "lomo":
            return Lomo(groups, lr=rate, max_norm=training.max_grad_norm or math.inf)
    return _adam(name, groups, training)


def _adam(name: str, groups: Groups, training: Training) -> torch.optim.Optimizer:
    """One of the Adam family. Packages are imported when they are asked for."""
    options: dict[str, Any] = {
        "lr": training.learning_rate,
        "betas": (training.adam_beta1, training.adam_beta2),
        "eps": training.adam_epsilon,
    }
    on_gpu = all(weight.device.type == "cuda" for group in groups for weight in group["params"])
    match name:
        case "adamw_torch":  # the fused kernel computes the same as the plain one, several times as fast
            return torch.optim.AdamW(groups, fused=True, **options)
        case "adamw_8bit" | "paged_adamw_8bit" | "paged_adamw_32bit":
            bits = 32 if name.endswith("32bit") else 8
            paged = on_gpu and name.startswith("paged")  # states move to main memory only where there is another
            adamw: Any = import_module("bitsandbytes.optim").AdamW
            return _optimizer(adamw(groups, optim_bits=bits, is_paged=paged, **options))
        case "galore_adamw" | "galore_adamw_8bit":
            from trainer_service.recipes.low_rank_gradients import GaLoreAdamW, GaLoreAdamW8bit

            return (
                GaLoreAdamW8bit(groups, optim_bits=8, **options) if "8bit" in name else GaLoreAdamW(groups, **options)
            )
        case "stable_adamw":
            from optimi import StableAdamW

            return _optimizer(StableAdamW(groups, triton=on_gpu, **options))
        case "grokadamw":
            from trainer_service.recipes.packaged_optimizers import GrokAdamW

            return GrokAdamW(groups, **options)
        case "schedule_free_radam":
            from trainer_service.recipes.packaged_optimizers import ScheduleFreeRAdam

            return ScheduleFreeRAdam(groups, **options)
    raise ValueError(f"optimiser {name!r}")


def _optimizer(made: Any) -> torch.optim.Optimizer:
    """What an untyped package made."""
    assert isinstance(made, torch.optim.Optimizer)
    return made


def _groups(model: nn.Module, training: Training, *, projects: bool) -> Groups:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    low_rank: list[torch.Tensor] = []
    if projects:
        from trainer_service.recipes.low_rank_gradients import RANK, is_projected

        output = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
        layers = [module for module in model.modules() if isinstance(module, nn.Linear) and module is not output]
        low_rank = [layer.weight for layer in layers if layer.weight.requires_grad and is_projected(layer.weight)]
    chosen = {id(parameter) for parameter in low_rank}
    matrices = [weight for weight in trained if weight.ndim >= 2 and id(weight) not in chosen]
    groups: Groups = [
        {"params": matrices, "weight_decay": training.weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    if low_rank:
        groups.append({"params": low_rank, "weight_decay": training.weight_decay, "rank": RANK})
    return [group for group in groups if group["params"]]


class Optimisation:
    """Optimiser, schedule, gradient clipping and loss scaling of one training. Raises InvalidJob."""

    def __init__(
        self, model: nn.Module, training: Training, formats: Precision, device: torch.device, *, total_steps: int
    ) -> None:
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._max_norm = training.max_grad_norm or math.inf
        self._optimizer = create_optimizer(model, training)
        self._schedule = Schedule(self._optimizer, training, total_steps)
        self._scaler = torch.amp.GradScaler(device.type, enabled=formats.scales)
        self._norm = torch.zeros((), device=device)
        if isinstance(self._optimizer, Lomo) and dist.is_initialized() and dist.get_world_size() > 1:
            raise InvalidJob("optim: lomo trains in one process, because it keeps no gradients to exchange")

    @property
    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds of it: objects with state_dict() and load_state_dict(), by file name."""
        return {"optimizer": self._optimizer, "scheduler": self._schedule, "scaler": self._scaler}

    def settled(self, *, when: bool = True) -> AbstractContextManager[Any]:
        """Within, the weights are those to evaluate and to save, which some optimisers do not train on."""
        settled = getattr(self._optimizer, "settled", nullcontext) if when else nullcontext
        context: AbstractContextManager[Any] = settled()
        return context

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradients of a loss."""
        if isinstance(self._optimizer, Lomo):
            self._norm = self._optimizer.fused_backward(loss)
        else:
            self._scaler.scale(loss).backward()

    def step(self) -> tuple[torch.Tensor, float]:
        """Changes the weights; the norm that the gradients had and the learning rate that was used."""
        rate = self._schedule.rate
        if isinstance(self._optimizer, Lomo):
            self._optimizer.step()
        else:
            self._scaler.unscale_(self._optimizer)
            self._norm = torch.nn.utils.clip_grad_norm_(self._trained, self._max_norm)
            self._scaler.step(self._optimizer)
            self._scaler.update()
            self._optimizer.zero_grad()
        self._schedule.step()
        return self._norm, rate

    def evaluated(self, loss: float) -> None:
        """The validation loss was measured."""
        self._schedule.evaluated(loss)
