"""Optimisers of other packages, with states that a checkpoint may hold: tensors and plain values."""

import logging
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from schedulefree import RAdamScheduleFree

_root = logging.NullHandler()
logging.root.addHandler(_root)  # grokadamw sets up logging when it is imported, unless somebody has
from grokadamw import GrokAdamW as _GrokAdamW  # noqa: E402

logging.root.removeHandler(_root)


class GrokAdamW(_GrokAdamW):  # type: ignore[misc]
    """GrokAdamW with its state where PyTorch keeps states: the package hides it in the groups, keyed by weights."""

    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Takes a step; a closure is not called."""
        for group in self.param_groups:
            group["state"] = self.state
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it asks for CUDA's autocast by an older name, also on a CPU
            self._step_impl(None)
        for group in self.param_groups:
            del group["state"]


class ScheduleFreeRAdam(RAdamScheduleFree):  # type: ignore[misc]
    """Schedule-free RAdam (arXiv:2405.15682), which trains on other weights than those it is judged by.

    `settled` puts the weights into place that are evaluated and saved. A state is taken and loaded with those.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.train()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a state that was taken within `settled`."""
        super().load_state_dict(state_dict)
        self.train()

    @contextmanager
    def settled(self) -> Any:
        """The weights to evaluate and save are in place within."""
        self.eval()
        try:
            yield
        finally:
            self.train()
