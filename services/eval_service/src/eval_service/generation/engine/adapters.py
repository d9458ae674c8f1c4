"""Several adapters on one base model in memory; another becomes active by a change of references alone."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from modelkit.adapters import Adapter, Product
from modelkit.errors import InvalidAdapter, Problem


@dataclass(frozen=True, slots=True)
class Update:
    """A low-rank update of a layer: first (rank, in) is applied before second (out, rank), which holds the scale.

    Of an embedding first holds a row for each token, (tokens, rank).
    """

    first: torch.Tensor
    second: torch.Tensor

    def linear(self, inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """The layer's output with the update."""
        return output + functional.linear(functional.linear(inputs, self.first), self.second)

    def embedding(self, tokens: torch.Tensor, output: torch.Tensor, factor: torch.Tensor | float) -> torch.Tensor:
        """The embeddings with the update; factor is what the layer multiplies embeddings by (Gemma 3 does)."""
        return output + functional.linear(functional.embedding(tokens, self.first), self.second) * factor


@dataclass(frozen=True, slots=True)
class Variant:
    """An adapter in memory: updates by the name of the layer, and tensors that take the place of the model's own.

    A replaced tensor that the model uses in two places takes one of them alone, as in PEFT.
    """

    updates: dict[str, Update] = field(default_factory=dict)
    replacements: dict[str, nn.Parameter] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of its tensors."""
        tensors: list[torch.Tensor] = [*self.replacements.values()]
        tensors += [tensor for update in self.updates.values() for tensor in (update.first, update.second)]
        return sum(tensor.nbytes for tensor in tensors)


class Variants:
    """The adapters of a base model. The layers ask the active one; with none active the model is the base itself."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._known: dict[str, Variant] = {"": Variant()}
        self._active = self._known[""]
        self._own: dict[str, nn.Parameter] = {}  # tensors of the base that some adapter replaces
        self._hooked: set[str] = set()

    def add(self, name: str, directory: Path) -> int:
        """Reads an adapter and returns its size in bytes.

        Raises InvalidAdapter when it does not fit the model, and OSError.
        """
        variant = self._read(directory)
        for layer in variant.updates:
            self._hook(layer)
        for tensor in variant.replacements:
            self._own.setdefault(tensor, self._model.get_parameter(tensor))
        self._known[name] = variant
        return variant.size

    def remove(self, name: str) -> None:
        """Forgets an adapter; whoever holds it may still activate it."""
        self._known.pop(name, None)

    def find(self, name: str) -> Variant:
        """An adapter that was added; the base itself for the empty name."""
        return self._known[name]

    def activate(self, variant: Variant) -> None:
        """Makes an adapter take part in what the model computes."""
        if variant is self._active:
            return
        self._active = variant
        for name, own in self._own.items():
            module, _, leaf = name.rpartition(".")
            setattr(self._model.get_submodule(module), leaf, variant.replacements.get(name, own))

    def _read(self, directory: Path) -> Variant:
        variant, problems = Variant(), []
        with Adapter(directory) as adapter:
            for name, product in adapter.products.items():
                weight = self._parameter(name)
                if weight is None or not product.fits(tuple(weight.shape)):
                    problems.append(name)
                else:
                    variant.updates[name.removesuffix(".weight")] = _update(product, weight)
            for name, stored in adapter.replacements.items():
                own = self._parameter(name)
                if own is None or tuple(own.shape) != tuple(stored.info.shape):
                    problems.append(name)
                else:
                    values = torch.from_numpy(stored.values()).to(own.device, own.dtype)
                    variant.replacements[name] = nn.Parameter(values, requires_grad=False)
        if problems:
            message = (
                f"the adapter was made for another base model: {len(problems)} tensors do not fit, first {problems[0]}"
            )
            raise InvalidAdapter(Problem("", message))
        return variant

    def _parameter(self, name: str) -> torch.Tensor | None:
        try:
            parameter: torch.Tensor = self._model.get_parameter(name)
        except AttributeError:
            return None
        return parameter

    def _hook(self, layer: str) -> None:
        if layer not in self._hooked:
            self._hooked.add(layer)
            module: nn.Module = self._model.get_submodule(layer)
            module.register_forward_hook(self._updater(layer, isinstance(module, nn.Embedding)))

    def _updater(self, layer: str, embeds: bool) -> Callable[[nn.Module, Any, torch.Tensor], torch.Tensor]:
        def apply(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            update = self._active.updates.get(layer)
            if update is None:
                return output
            if embeds:
                return update.embedding(inputs[0], output, getattr(module, "embed_scale", 1.0))
            return update.linear(inputs[0], output)

        return apply


def _update(product: Product, weight: torch.Tensor) -> Update:
    """The matrices of a product as a layer with this weight applies them."""
    shape = tuple(weight.shape)
    factors = product.read(shape)
    left, right = (torch.from_numpy(part).to(weight.device, weight.dtype) for part in (factors.left, factors.right))
    if product.embedding:
        return Update(left, right.T.contiguous())
    return Update(left.T.contiguous(), right.T.contiguous()) if product.is_transposed(shape) else Update(right, left)
