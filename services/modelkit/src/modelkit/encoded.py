"""A row as token ids with labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

IGNORED = -100
Ids = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A row: token ids and labels of equal length, IGNORED where no loss counts; truncated: it was cut.

    label is the number of the row's class when classes are learnt, else -1.
    """

    input_ids: Ids
    labels: Ids
    truncated: bool
    label: int = -1

    @property
    def masked(self) -> bool:
        """Nothing is left to learn."""
        return self.label < 0 and not bool((self.labels != IGNORED).any())


class RowEncoder(Protocol):
    """Turns rows into token ids with labels."""

    @property
    def identity(self) -> tuple[object, ...]:
        """What, beside the tokenizer's files, decides what comes out."""

    def encode(self, rows: Sequence[Any], /) -> list[Encoded]:
        """Each row. Raises InvalidTemplate."""


def encode_batch(backend: Any, texts: list[str], *, special_tokens: bool) -> list[Any]:
    """Encodings of texts; other threads go on meanwhile."""
    encodings: list[Any] = backend.encode_batch(texts, add_special_tokens=special_tokens)
    return encodings
