"""The checkpoints of one base model, each in its turn in the module that was loaded once.

An adapter takes part by hooks that compute its low-rank products beside the layers, so it leaves no trace when it is
removed; the weights of a full training take the place of those before.
"""

from pathlib import Path
from typing import Any

import torch

from eval_service.generation.engine.adapters import Variants
from modelkit.adapters import CONFIG
from modelkit.errors import InvalidCheckpoint, Problem
from modelkit.loading import load_weights

BASE = ""
TUNED = "checkpoint"


class Switch:
    """Makes a loaded model into a checkpoint of it, and into itself again. base is where it was loaded from."""

    def __init__(self, model: Any, base: Path) -> None:
        self._model = model
        self._base = base
        self._adapters = Variants(model)
        self._overwritten = False

    def to_base(self) -> None:
        """The model as it was loaded. Raises OSError."""
        self._adapters.activate(self._adapters.find(BASE))
        if self._overwritten:
            self._overwrite(self._base)
            self._overwritten = False

    def to(self, directory: Path) -> None:
        """A checkpoint: an adapter, or a whole model. Raises InvalidAdapter, InvalidCheckpoint or OSError."""
        if not (directory / CONFIG).is_file():
            self._overwritten = True
            self._overwrite(directory)
            return
        self._adapters.add(TUNED, directory)
        self._adapters.activate(self._adapters.find(TUNED))

    def _overwrite(self, directory: Path) -> None:
        weights = load_weights(directory)
        own = dict(self._model.named_parameters(remove_duplicate=False))
        strange = sorted(name for name, tensor in weights.items() if name in own and own[name].shape != tensor.shape)
        strange += sorted(weights.keys() - own.keys() - dict(self._model.named_buffers()).keys())
        if strange:
            message = f"{directory.name} is not a checkpoint of this base model: {strange[0]} does not fit"
            raise InvalidCheckpoint(Problem("", message))
        with torch.no_grad():
            for name in weights.keys() & own.keys():
                own[name].copy_(weights[name])
