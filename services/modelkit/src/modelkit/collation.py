"""Sequences as the tensors of one forward pass: laid end to end in one row, or padded to one length."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from modelkit.chat import IGNORED, Encoded


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences of one forward pass: ids and labels of shape (rows, tokens).

    With position_ids, of the same shape, there is one row, in which the sequences lie end to end; else each sequence
    is a row, padded on the right. lengths are those of the sequences; classes are theirs too, -1 where there is none.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    lengths: tuple[int, ...]
    classes: torch.Tensor
    position_ids: torch.Tensor | None = None

    @property
    def targets(self) -> int:
        """What its loss is a sum of: sequences with a class, else tokens with a label."""
        classes = int((self.classes >= 0).sum())
        return classes or int((self.labels[:, 1:] != IGNORED).sum())

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "Batch":
        """The same in memory that a GPU copies from at once."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        positions = None if self.position_ids is None else change(self.position_ids)
        return Batch(change(self.input_ids), change(self.labels), self.lengths, change(self.classes), positions)


def collate(rows: Sequence[Encoded], pad_id: int, *, end_to_end: bool = False) -> Batch:
    """Puts sequences in one batch; none at all make one of padding, so that all processes do the same work."""
    rows = rows or [_nothing(pad_id)]
    lengths = tuple(len(row.input_ids) for row in rows)
    classes = torch.tensor([row.label for row in rows])
    if end_to_end:
        positions = np.concatenate([np.arange(length) for length in lengths])
        labels = np.concatenate([row.labels for row in rows]).astype(np.int64)
        labels[positions == 0] = IGNORED  # what comes before belongs to another sequence
        ids = np.concatenate([row.input_ids for row in rows]).astype(np.int64)
        tensors = (torch.from_numpy(array)[None] for array in (ids, labels, positions))
        input_ids, targets, position_ids = tensors
        return Batch(input_ids, targets, lengths, classes, position_ids)
    padded = np.full((len(rows), max(lengths)), pad_id, dtype=np.int64)
    labels = np.full_like(padded, IGNORED)
    for position, row in enumerate(rows):
        padded[position, : lengths[position]] = row.input_ids
        labels[position, : lengths[position]] = row.labels
    return Batch(torch.from_numpy(padded), torch.from_numpy(labels), lengths, classes)


def forwards(rows: Sequence[Encoded], budget: int, *, end_to_end: bool) -> Iterator[list[Encoded]]:
    """Shares rows out to forward passes of at most `budget` tokens, padding included; a longer row gets its own.

    Rows that are to be padded come in order of length, so that little padding is needed.
    """
    taken: list[Encoded] = []
    tokens = 0
    for row in rows if end_to_end else by_length(rows):
        tokens = tokens + len(row.input_ids) if end_to_end else (len(taken) + 1) * len(row.input_ids)
        if taken and tokens > budget:
            yield taken
            taken, tokens = [], len(row.input_ids)
        taken.append(row)
    if taken:
        yield taken


def by_length(rows: Sequence[Encoded]) -> list[Encoded]:
    """The shortest first."""
    return sorted(rows, key=lambda row: len(row.input_ids))


def _nothing(pad_id: int) -> Encoded:
    ids = np.full(2, pad_id, dtype=np.int32)
    return Encoded(ids, np.full_like(ids, IGNORED), truncated=False)
