"""Copies of a training's state, taken between two steps, so that they can be written while training goes on.

Copying within memory is many times as fast as writing files. The buffers are used again for the next snapshot, so a
job holds one copy at most. Forking would copy lazily instead, but a process with threads and a GPU cannot be forked.
"""

from typing import Any

import torch

from trainer_service.recipes.memory import available_bytes
from trainer_service.recipes.sharding import part_of, whole

# Of the memory that is free; the rest is for what training itself still takes.
SHARE_OF_FREE = 0.5

Place = tuple[str | int, ...]


class Snapshots:
    """Takes copies in host memory. Only one is valid at a time: each overwrites the one before."""

    def __init__(self) -> None:
        self._buffers: dict[Place, torch.Tensor] = {}

    def take(self, tree: Any) -> Any:
        """A copy of nested mappings and lists of tensors; tensors that share memory share it in the copy too.

        Tensors that are spread over processes are put together, for which the others must `take_part`.
        """
        copies: dict[tuple[Any, ...], torch.Tensor] = {}
        copied = self._copy(tree, (), copies)
        if any(source[0].type == "cuda" for source in copies):
            torch.cuda.synchronize()
        return copied

    def fits(self, tree: Any) -> bool:
        """Whether the machine has room for the copy beside what training needs."""
        held = sum(_bytes(buffer) for buffer in self._buffers.values())
        return size_of(tree) - held <= SHARE_OF_FREE * available_bytes()

    def _copy(self, tree: Any, path: Place, copies: dict[tuple[Any, ...], torch.Tensor]) -> Any:
        if isinstance(tree, torch.Tensor):
            return self._copy_tensor(tree.detach(), path, copies)
        if isinstance(tree, dict):
            return {name: self._copy(value, (*path, name), copies) for name, value in tree.items()}
        if isinstance(tree, list | tuple):
            return type(tree)([self._copy(value, (*path, index), copies) for index, value in enumerate(tree)])
        return tree

    def _copy_tensor(
        self, tensor: torch.Tensor, path: Place, copies: dict[tuple[Any, ...], torch.Tensor]
    ) -> torch.Tensor:
        own = part_of(tensor)
        alias = (own.device, own.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        tensor = whole(tensor)
        if tensor.numel() and alias in copies:
            return copies[alias]
        buffer = self._buffers.get(path)
        if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
            pinned = tensor.device.type == "cuda"
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
            self._buffers[path] = buffer
        buffer.copy_(tensor, non_blocking=True)
        copies[alias] = buffer
        return buffer


def size_of(tree: Any) -> int:
    """Bytes of all tensors of nested mappings and lists."""
    if isinstance(tree, torch.Tensor):
        return _bytes(tree)
    if isinstance(tree, dict):
        return sum(size_of(value) for value in tree.values())
    return sum(size_of(value) for value in tree) if isinstance(tree, list | tuple) else 0


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
