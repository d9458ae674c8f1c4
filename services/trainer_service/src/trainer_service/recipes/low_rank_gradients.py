"""GaLore: AdamW whose moments live in a low-rank space of the gradients (arXiv:2403.03507).

Memory of the optimiser's state falls with the rank. It is written out here for any AdamW, so that the one of 8 bits
works on every device: the package galore-torch synchronises CUDA in each step, and keeps objects in its state that no
checkpoint may hold.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import nn

_AdamW: Any = import_module("bitsandbytes.optim").AdamW
RANK = 128
REFRESH_STEPS = 200
SCALE = 0.25


def is_projected(parameter: torch.Tensor) -> bool:
    """Whether the gradient of a weight is projected: it is a matrix, and the rank saves something."""
    return parameter.ndim == 2 and min(parameter.shape) > RANK


class LowRankGradients(torch.optim.Optimizer):
    """Projects the gradients of groups with "rank" before another optimiser's step, and its update back after it.

    A projection is made of the leading singular vectors of a gradient, anew every REFRESH_STEPS steps. Weight decay
    acts on the weights themselves.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._projections: dict[nn.Parameter, torch.Tensor] = {}
        self._steps = 0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Takes a step; a closure is not called."""
        projected = [
            (group, weight)
            for group in self.param_groups
            if "rank" in group
            for weight in group["params"]
            if weight.grad is not None
        ]
        decays = [group["weight_decay"] for group in self.param_groups]
        whole = {weight: weight.data for _, weight in projected}
        for group, weight in projected:
            group["weight_decay"] = 0.0
            low = self._project(weight, group["rank"])
            weight.data, weight.grad = torch.zeros_like(low), low
        super().step()
        for group, decay in zip(self.param_groups, decays, strict=True):
            group["weight_decay"] = decay
        for group, weight in projected:
            update = self._back(weight)
            weight.data = whole[weight].add_(update, alpha=SCALE).mul_(1 - group["lr"] * group["weight_decay"])
            weight.grad = None
        self._steps += 1

    def state_dict(self) -> dict[str, Any]:
        """The inner optimiser's state, and the projections by the weight's place."""
        places = {weight: place for place, weight in enumerate(self._weights())}
        projections = {places[weight]: projection for weight, projection in self._projections.items()}
        return {**super().state_dict(), "projections": projections, "projected_steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        super().load_state_dict({name: state_dict[name] for name in ("state", "param_groups")})
        weights = self._weights()
        self._projections = {
            weights[place]: projection.to(weights[place].device)
            for place, projection in state_dict["projections"].items()
        }
        self._steps = state_dict["projected_steps"]

    def _weights(self) -> list[nn.Parameter]:
        return [weight for group in self.param_groups for weight in group["params"]]

    def _project(self, weight: nn.Parameter, rank: int) -> torch.Tensor:
        """The gradient with its shorter side cut down to the rank."""
        gradient = weight.grad
        assert gradient is not None
        if weight not in self._projections or self._steps % REFRESH_STEPS == 0:
            # Gradients that are no numbers stay so below, where the loop notices them.
            left, _, right = torch.linalg.svd(gradient.float().nan_to_num(), full_matrices=False)
            leading = right[:rank].T if gradient.shape[0] >= gradient.shape[1] else left[:, :rank]
            self._projections[weight] = leading.to(gradient.dtype).contiguous()
        projection = self._projections[weight]
        return gradient @ projection if gradient.shape[0] >= gradient.shape[1] else projection.T @ gradient

    def _back(self, weight: nn.Parameter) -> torch.Tensor:
        projection, low = self._projections[weight], weight.data
        return low @ projection.T if low.shape[1] == projection.shape[1] else projection @ low


class GaLoreAdamW(LowRankGradients, torch.optim.AdamW):
    """GaLore with PyTorch's AdamW."""


class GaLoreAdamW8bit(LowRankGradients, _AdamW):  # type: ignore[misc]
    """GaLore with the AdamW of bitsandbytes, whose moments have 8 bits."""
