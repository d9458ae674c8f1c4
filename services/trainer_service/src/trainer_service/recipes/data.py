"""Training data: conversations tokenised when they are first needed, in an order that depends on seed and step alone.

Nothing is prepared for the whole dataset before the first step, so the time to it does not grow with the data. Because
step n always takes the same rows, resuming needs no state, and any number of processes sees the same steps.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from modelkit.chat import IGNORED, Encoded
from trainer_service.recipes.rows import EncodedRows


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences padded on the right to one length: ids and labels of shape (sequences, tokens)."""

    input_ids: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True, slots=True)
class Step:
    """What one process does in one optimiser step; trained_tokens are those with a loss, rows the sequences."""

    batches: tuple[Batch, ...]
    trained_tokens: int
    tokens: int
    rows: int


class Batches:
    """Cuts rows into steps. A step takes `size * accumulation * world` rows, the last of an epoch what is left."""

    def __init__(
        self, rows: EncodedRows, order: NDArray[np.int64], *, seed: int, size: int, accumulation: int, pad_id: int
    ) -> None:
        self._rows = rows
        self._order = order
        self._seed = seed
        self._size = size
        self._accumulation = accumulation
        self._pad_id = pad_id

    def __len__(self) -> int:
        return len(self._order)

    def steps_per_epoch(self, world: int) -> int:
        """Optimiser steps that see every row once."""
        return math.ceil(len(self._order) / (self._size * self._accumulation * world))

    def steps(self, first: int, last: int, *, rank: int, world: int) -> Iterator[Step]:
        """Steps first to last (exclusive), from 0, of one of the processes."""
        per_epoch = self.steps_per_epoch(world)
        epoch, shuffled = -1, self._order
        for step in range(first, last):
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                shuffled = np.random.default_rng((self._seed, epoch)).permutation(self._order)
            count = self._size * self._accumulation * world
            rows = shuffled[step % per_epoch * count :][:count]
            yield self._step(rows, rank, world)

    def _step(self, rows: NDArray[np.int64], rank: int, world: int) -> Step:
        share = np.array_split(rows, world)[rank]
        forwards = math.ceil(math.ceil(len(rows) / world) / self._size)
        encoded = [row for row in self._rows.get(share) if not row.masked]
        batches = [encoded[start * self._size :][: self._size] for start in range(forwards)]
        if world == 1:  # several processes do the same number of forward passes, alone the empty ones are left out
            batches = [batch for batch in batches if batch] or [[]]
        return Step(
            batches=tuple(collate(batch, self._pad_id) for batch in batches),
            trained_tokens=sum(int((row.labels[1:] != IGNORED).sum()) for row in encoded),
            tokens=sum(len(row.input_ids) for row in encoded),
            rows=len(share),
        )


def collate(rows: Sequence[Encoded], pad_id: int) -> Batch:
    """Pads rows to the longest; no rows at all make one of padding, so that all processes do the same work."""
    length = max((len(row.input_ids) for row in rows), default=2)
    ids = np.full((max(1, len(rows)), length), pad_id, dtype=np.int64)
    labels = np.full_like(ids, IGNORED)
    for position, row in enumerate(rows):
        ids[position, : len(row.input_ids)] = row.input_ids
        labels[position, : len(row.labels)] = row.labels
    return Batch(torch.from_numpy(ids), torch.from_numpy(labels))


class HeldOut:
    """Rows to evaluate on, tokenised at the first evaluation, in batches of like lengths."""

    def __init__(self, rows: EncodedRows, order: NDArray[np.int64], *, size: int, pad_id: int) -> None:
        self._rows = rows
        self._order = order
        self._size = size
        self._pad_id = pad_id

    @cached_property
    def batches(self) -> list[Batch]:
        """All of them. Raises InvalidTemplate, OSError, ValueError."""
        encoded = [row for row in self._rows.get(self._order) if not row.masked]
        encoded.sort(key=lambda row: len(row.input_ids))
        return [collate(encoded[start:][: self._size], self._pad_id) for start in range(0, len(encoded), self._size)]
