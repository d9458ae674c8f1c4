"""LOMO: SGD that changes each weight as soon as its gradient is known, within the backward pass (arXiv:2306.09782).

No gradient is kept, so memory holds the weights and one gradient at a time. Clipping by the norm of all gradients takes
a backward pass of its own.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch


class Lomo(torch.optim.Optimizer):
    """Changes weights in `fused_backward`; `step` does nothing. max_norm is infinite without clipping."""

    def __init__(self, groups: Iterable[dict[str, Any]], *, lr: float, max_norm: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})
        self._max_norm = max_norm
        self._squares = torch.zeros(())
        self._factor: torch.Tensor | None = None
        for place, group in enumerate(self.param_groups):
            for weight in group["params"]:
                weight.register_post_accumulate_grad_hook(self._taker(place))

    def fused_backward(self, loss: torch.Tensor) -> torch.Tensor:
        """Takes the step of a loss; the norm that its gradients had before they were clipped."""
        self._squares = torch.zeros((), device=loss.device)
        if math.isinf(self._max_norm):
            self._factor = torch.ones((), device=loss.device)
            loss.backward()
            return self._squares.sqrt()
        self._factor = None
        loss.backward(retain_graph=True)
        norm = self._squares.sqrt()
        self._factor = (self._max_norm / (norm + 1e-6)).clamp(max=1.0)
        loss.backward()
        return norm

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Nothing is left to do."""

    def _taker(self, place: int) -> Callable[[torch.Tensor], None]:
        @torch.no_grad()
        def take(weight: torch.Tensor) -> None:
            assert weight.grad is not None
            gradient, weight.grad = weight.grad.float(), None
            if self._factor is None:
                self._squares += gradient.square().sum()
                return
            if math.isinf(self._max_norm):
                self._squares += gradient.square().sum()
            group = self.param_groups[place]
            changed = weight.data.float().mul_(1 - group["lr"] * group["weight_decay"])
            weight.data.copy_(changed.sub_(gradient * (group["lr"] * self._factor)))

        return take
