"""Fully sharded data parallel: each process keeps a part of every weight, gradient and optimiser state (FSDP2).

Files are the same as without: whole tensors are put together for them, one at a time, by all processes together. So a
training can go on with another number of processes, sharded or not.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


def shard(objective: nn.Module, device: torch.device, size: int) -> nn.Module:
    """Spreads a model over all processes, in place: each of its blocks, and what lies outside them."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (size,))
    for block in _blocks(objective):
        fully_shard(block, mesh=mesh)
    fully_shard(objective, mesh=mesh)
    if hasattr(objective, "logits"):
        register_fsdp_forward_method(objective, "logits")
    return objective


def is_sharded(module: nn.Module) -> bool:
    """Whether `shard` has spread a model."""
    return hasattr(module, "set_requires_gradient_sync")


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor put together from all processes, which must all call this; itself when it is not spread."""
    put_together = getattr(tensor, "full_tensor", None)
    found: torch.Tensor = put_together() if put_together else tensor
    return found


def part_of(tensor: torch.Tensor) -> torch.Tensor:
    """What this process has of a tensor."""
    local = getattr(tensor, "to_local", None)
    found: torch.Tensor = local() if local else tensor
    return found


def take_part(tree: Any) -> None:
    """Helps another process to put together the tensors of nested mappings and lists."""
    for tensor in _tensors(tree):
        whole(tensor)


def spread(state: dict[str, Any], optimizer: Any) -> dict[str, Any]:
    """An optimiser's saved state, of which this process keeps its part where its weights are spread."""
    weights = [weight for group in getattr(optimizer, "param_groups", ()) for weight in group["params"]]
    for index, weight in enumerate(weights):
        if not hasattr(weight, "full_tensor"):
            continue
        from torch.distributed.tensor import distribute_tensor

        own = state["state"].get(index, {})
        for name, value in own.items():
            if isinstance(value, torch.Tensor) and value.shape == weight.shape:
                value = value.to(weight.device)
                own[name] = distribute_tensor(value, weight.device_mesh, weight.placements, src_data_rank=None)
    return state


def plain_model(model: nn.Module, weights: dict[str, torch.Tensor]) -> nn.Module:
    """A model like one that is spread, but whole, of copies of its weights."""
    with torch.device("meta"):
        twin: Any = type(model)(model.config)
    twin.load_state_dict(weights, assign=True)
    twin.tie_weights()
    twin.generation_config = getattr(model, "generation_config", None)
    return twin  # type: ignore[no-any-return]


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The repeated blocks of a transformers model."""
    names = {name for part in module.modules() for name in (getattr(part, "_no_split_modules", None) or ())}
    yield from [part for part in module.modules() if type(part).__name__ in names]


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from _tensors(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _tensors(value)
