"""How surprised a model is by expected answers: the loss of each sample, several samples in one forward pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from modelkit.attention import isolates, use_segments
from modelkit.collation import collate, forwards
from modelkit.encoded import IGNORED, Encoded
from modelkit.forwarding import base_of, class_logits, token_losses

BUDGETS = {"cpu": 4096, "cuda": 32768}


@dataclass(frozen=True, slots=True)
class Losses:
    """Of each sample the sum of its losses in nats, and the number of tokens that have one."""

    sums: NDArray[np.float64]
    tokens: NDArray[np.int64]


class Forwarding:
    """Sequences cut into forward passes once, however many checkpoints read them.

    belongs says which sample each sequence is a part of; between is called before each forward pass.
    """

    def __init__(
        self,
        rows: Sequence[Encoded],
        belongs: Sequence[int],
        model: Any,
        *,
        pad_id: int,
        between: Callable[[], None] = lambda: None,
    ) -> None:
        device = next(model.parameters()).device
        self._between = between
        end_to_end = isolates(base_of(model).config.model_type)
        order = sorted(range(len(rows)), key=lambda place: len(rows[place].input_ids))
        parts = list(
            forwards(
                [rows[place] for place in order],
                BUDGETS.get(device.type, BUDGETS["cpu"]),
                end_to_end=end_to_end,
            )
        )
        self._batches = [collate(part, pad_id, end_to_end=end_to_end).to(device) for part in parts]
        places = iter(order)
        self._samples = [np.array([belongs[next(places)] for _ in part]) for part in parts]
        self._count = max(belongs, default=-1) + 1

    def losses(self, model: Any) -> Losses:
        """Of each sample over its sequences, under a model. The attention of the model is set for this."""
        use_segments(model)
        sums, tokens = np.zeros(self._count), np.zeros(self._count, dtype=np.int64)
        for batch, samples in zip(self._batches, self._samples, strict=True):
            self._between()
            losses, positions = token_losses(model, batch)
            owners = samples[_sequence_of(positions.cpu().numpy(), batch.lengths, batch.labels.shape)]
            np.add.at(sums, owners, losses.double().cpu().numpy())
            np.add.at(tokens, owners, 1)
        return Losses(sums, tokens)

    def classes(self, model: Any) -> NDArray[np.int64]:
        """The class that a classifier puts each sample in."""
        use_segments(model)
        told = np.zeros(self._count, dtype=np.int64)
        for batch, samples in zip(self._batches, self._samples, strict=True):
            self._between()
            with torch.no_grad():
                told[samples] = class_logits(model, batch).float().argmax(-1).cpu().numpy()
        return told


def windows(row: Encoded, length: int) -> list[Encoded]:
    """A text whose every token is learnt, cut as in training: only the first token of each window has no loss."""
    if len(row.input_ids) <= length:
        return [row]
    cuts = range(0, len(row.input_ids), length)
    return [Encoded(row.input_ids[at : at + length], row.labels[at : at + length], False) for at in cuts]


def supervised(row: Encoded) -> int:
    """Tokens of a sequence that have a loss."""
    return int((row.labels[1:] != IGNORED).sum())


def _sequence_of(positions: NDArray[np.int64], lengths: Sequence[int], shape: Sequence[int]) -> NDArray[np.int64]:
    """Which sequence of a batch each flat position of its labels lies in."""
    if shape[0] == len(lengths) and shape[0] > 1:
        return positions // shape[1]
    return np.searchsorted(np.cumsum(lengths), positions, side="right")
