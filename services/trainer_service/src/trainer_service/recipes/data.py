"""Training data: rows tokenised when they are first needed, in an order that depends on seed and step alone.

Without packing nothing is prepared for the whole dataset before the first step, so the time to it does not grow with
the data; packing must know the length of every row first. Because step n always takes the same rows, resuming needs no
state, and any number of processes sees the same steps.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from modelkit.chat import Encoded
from modelkit.collation import Batch, by_length, collate, forwards
from trainer_service.recipes import packing
from trainer_service.recipes.packing import Arrangement
from trainer_service.recipes.rows import EncodedRows


@dataclass(frozen=True, slots=True)
class Layout:
    """How sequences share a forward pass, which has room for as many tokens as `size` of the longest.

    end_to_end: they lie in one row instead of being padded; packing: a step counts bins of max_length tokens instead
    of rows; joined: these are cut from the text of all rows laid end to end.
    """

    size: int
    max_length: int
    pad_id: int
    end_to_end: bool = False
    packing: bool = False
    joined: bool = False

    @property
    def budget(self) -> int:
        """Tokens of a forward pass, padding included."""
        return self.size * self.max_length

    def collate(self, rows: list[Encoded]) -> Batch:
        """One forward pass of these sequences."""
        return collate(rows, self.pad_id, end_to_end=self.end_to_end)

    def arrange(self, rows: EncodedRows, order: NDArray[np.int64], generator: np.random.Generator) -> Arrangement:
        """The units of an epoch over these rows."""
        if not self.packing:
            return packing.singles(order)
        make = packing.blocks if self.joined else packing.bins
        return make(order, rows.lengths(order), self.max_length, generator)


@dataclass(frozen=True, slots=True)
class Step:
    """What one process does in one optimiser step; trained_tokens are those with a loss (sequences where these have a
    class), tokens those of all sequences, rows the number of sequences."""

    batches: tuple[Batch, ...]
    trained_tokens: int
    tokens: int
    rows: int


class Batches:
    """Cuts units into steps. A step takes `size * accumulation * world` units, the last of an epoch what is left."""

    def __init__(
        self,
        rows: EncodedRows,
        order: NDArray[np.int64],
        layout: Layout,
        *,
        seed: int,
        accumulation: int = 1,
        shuffle: bool = True,
        pin_memory: bool = False,
    ) -> None:
        self._rows = rows
        self._order = order
        self._layout = layout
        self._seed = seed
        self._accumulation = accumulation
        self._shuffle = shuffle
        self._pin_memory = pin_memory

    def __len__(self) -> int:
        return len(self._order)

    @cached_property
    def units(self) -> int:
        """Units of an epoch, the same number in each. With packing this tokenises every row."""
        return len(self._epoch(0)) if self._layout.packing else len(self._order)

    def steps_per_epoch(self, world: int) -> int:
        """Optimiser steps that see every row once."""
        return math.ceil(self.units / self._units_per_step(world))

    def steps(self, first: int, last: int, *, rank: int, world: int) -> Iterator[Step]:
        """Steps first to last (exclusive), from 0, of one of the processes."""
        per_epoch, count = self.steps_per_epoch(world), self._units_per_step(world)
        epoch, arrangement = -1, Arrangement(self._order, self._order)
        for step in range(first, last):
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                arrangement = self._epoch(epoch)
            start = step % per_epoch * count
            yield self._step(arrangement, start, min(start + count, self.units), rank, world)

    def _units_per_step(self, world: int) -> int:
        return self._layout.size * self._accumulation * world

    def _epoch(self, epoch: int) -> Arrangement:
        """The units of an epoch. Without shuffling they are in the order of the data; packing puts equals together."""
        generator = np.random.default_rng((self._seed, epoch if self._shuffle else 0))
        order = generator.permutation(self._order) if self._shuffle and not self._layout.packing else self._order
        return self._layout.arrange(self._rows, order, generator)

    def _step(self, arrangement: Arrangement, start: int, end: int, rank: int, world: int) -> Step:
        units = np.array_split(np.arange(start, end), world)[rank]
        sequences = [sequences_of(self._rows, arrangement, int(unit)) for unit in units]
        kept = [[row for row in unit if not row.masked] for unit in sequences]
        trained = [row for unit in kept for row in unit]
        if world == 1:
            parts = list(forwards(trained, self._layout.budget, end_to_end=self._layout.end_to_end)) or [[]]
        else:
            passes = math.ceil(math.ceil((end - start) / world) / self._layout.size)
            parts = self._shares(kept, trained, passes)
        batches = [self._layout.collate(part) for part in parts]
        return Step(
            batches=tuple(batch.pinned() if self._pin_memory else batch for batch in batches),
            trained_tokens=sum(batch.targets for batch in batches),
            tokens=sum(len(row.input_ids) for row in trained),
            rows=sum(len(unit) for unit in sequences),
        )

    def _shares(self, units: list[list[Encoded]], rows: list[Encoded], passes: int) -> list[list[Encoded]]:
        """As many forward passes as every process makes, some of them empty."""
        if not self._layout.end_to_end:
            ordered = by_length(rows)
            return [[ordered[int(i)] for i in part] for part in np.array_split(np.arange(len(ordered)), passes)]
        size = self._layout.size
        return [[row for unit in units[at * size :][:size] for row in unit] for at in range(passes)]


class HeldOut:
    """Rows to evaluate on, tokenised at the first evaluation, in batches of like lengths."""

    def __init__(self, rows: EncodedRows, order: NDArray[np.int64], layout: Layout) -> None:
        self._rows = rows
        self._order = order
        self._layout = layout

    @cached_property
    def batches(self) -> list[Batch]:
        """All of them. Raises InvalidTemplate, OSError, ValueError."""
        if not len(self._order):
            return []
        arrangement = packing.singles(self._order)
        if self._layout.joined:
            arrangement = self._layout.arrange(self._rows, self._order, np.random.default_rng(0))
        units = (sequences_of(self._rows, arrangement, unit) for unit in range(len(arrangement)))
        rows = by_length([row for unit in units for row in unit if not row.masked])
        parts = forwards(rows, self._layout.budget, end_to_end=self._layout.end_to_end)
        return [self._layout.collate(part) for part in parts]


def sequences_of(rows: EncodedRows, arrangement: Arrangement, unit: int) -> list[Encoded]:
    """The sequences of a unit. Raises InvalidTemplate, OSError, ValueError."""
    span = slice(*arrangement.offsets[unit : unit + 2].tolist())
    pieces = rows.get(arrangement.rows[span])
    return pieces if arrangement.cuts is None else [packing.join(pieces, arrangement.cuts[span])]
