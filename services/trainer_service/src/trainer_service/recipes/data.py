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

from modelkit.chat import IGNORED, ChatEncoder, Encoded
from modelkit.datasets import DatasetReport, FileReport, JsonlDataset, Message
from modelkit.errors import InvalidDataset, InvalidTemplate, Problem

CACHE_TOKENS = 1 << 27  # 1 GiB of ids and labels
FIRST_ROWS, SEARCH_ROWS = 8, 256
MAX_SHAPES = 64

Rows = Sequence[int] | NDArray[np.int64]


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


@dataclass(slots=True)
class Counts:
    """What became of the rows that were tokenised so far."""

    rows: int = 0
    truncated: int = 0
    masked: int = 0

    def __str__(self) -> str:
        cut = f"{self.truncated} were longer than max_seq_length and cut"
        return f"{self.rows} rows tokenised: {cut}, {self.masked} had no reply left then and do not count"


class EncodedRows:
    """Rows of a dataset as token ids; remembers what it has tokenised as far as memory allows."""

    def __init__(self, rows: Sequence[list[Message]], encoder: ChatEncoder) -> None:
        self.counts = Counts()
        self._rows = rows
        self._encoder = encoder
        self._known: dict[int, Encoded] = {}
        self._counted = np.zeros(len(rows), dtype=bool)
        self._room = CACHE_TOKENS

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, indices: Rows) -> list[Encoded]:
        """The rows at these positions. Raises InvalidTemplate, OSError, ValueError."""
        positions = [int(index) for index in indices]
        missing = [index for index in dict.fromkeys(positions) if index not in self._known]
        fresh: dict[int, Encoded] = {}
        if missing:
            fresh = dict(zip(missing, self._encoder.encode([self._rows[index] for index in missing]), strict=True))
            self._count(fresh)
        found = [fresh.get(index) or self._known[index] for index in positions]
        for index, encoded in fresh.items():
            if self._room >= len(encoded.input_ids):
                self._room -= len(encoded.input_ids)
                self._known[index] = encoded
        return found

    def _count(self, fresh: dict[int, Encoded]) -> None:
        for index, encoded in fresh.items():
            if not self._counted[index]:
                self._counted[index] = True
                self.counts.rows += 1
                self.counts.truncated += encoded.truncated
                self.counts.masked += encoded.masked


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


def require_valid(report: DatasetReport) -> None:
    """Raises InvalidDataset with every problem of the files."""
    if not report.valid:
        raise InvalidDataset([Problem("dataset", str(problem)) for problem in report.problems])


def split(rows: int, eval_ratio: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions to train on and positions held out. Raises InvalidDataset when nothing is left to train on."""
    held_out = round(rows * eval_ratio)
    if eval_ratio > 0:
        held_out = max(1, held_out)
    if held_out >= rows:
        raise InvalidDataset(Problem("dataset", f"{rows} rows leave none to train on with eval_ratio {eval_ratio}"))
    order = np.random.default_rng((seed, 1 << 32)).permutation(rows) if held_out else np.arange(rows)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def require_trainable(rows: EncodedRows, order: NDArray[np.int64], max_length: int) -> None:
    """Looks until one row has a reply to learn. Raises InvalidDataset when max_seq_length cuts away all of them."""
    starts = [0, *range(FIRST_ROWS, len(order), SEARCH_ROWS)]
    for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
        if any(not row.masked for row in rows.get(order[start:end])):
            return
    message = f"all {len(order)} rows have their reply beyond max_seq_length ({max_length} tokens); raise it"
    raise InvalidDataset(Problem("dataset", message), reason="NOTHING_TO_TRAIN_ON")


def require_template_fits(encoder: ChatEncoder, rows: JsonlDataset, report: FileReport) -> None:
    """Renders one row of each shape that the data has. Raises InvalidDataset naming those the chat template refuses."""
    problems = []
    shapes = sorted((shape, index) for shape, index in report.shapes.items() if index < len(rows))
    for (turns, first), index in shapes[:MAX_SHAPES]:
        try:
            with encoder.template.time_limit():
                encoder.spans(rows[index])
        except InvalidTemplate as error:
            shape = f"conversations of {turns} messages that begin with a {first} message, first row {index + 1}"
            problems.append(Problem("dataset", f"{shape}: {error.problems[0].message}"))
    if problems:
        raise InvalidDataset(problems, reason="INVALID_CHAT_TEMPLATE")


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
