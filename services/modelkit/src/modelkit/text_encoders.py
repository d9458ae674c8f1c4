"""Texts as token ids: every token is learnt, or the class of the whole."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from modelkit.datasets import LabelledText
from modelkit.encoded import IGNORED, Encoded, encode_batch

NUMBER = re.compile(r"-?\d{1,18}")


class TextEncoder:
    """Tokenises texts whose every token is learnt, with the tokens that the tokenizer puts around a text.

    A text ends with the end token. max_length 0 cuts nothing.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, max_length: int = 0) -> None:
        backend: Any = tokenizer
        self._backend = backend.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._end_id: int | None = backend.eos_token_id
        self._max_length = max_length

    @property
    def identity(self) -> tuple[object, ...]:
        """What, beside the tokenizer's files, decides what comes out."""
        return "text", self._end_id, self._max_length

    def encode(self, rows: Sequence[str]) -> list[Encoded]:
        """Token ids of each text; the labels are the same."""
        return [self._row(encoding.ids) for encoding in encode_batch(self._backend, list(rows), special_tokens=True)]

    def _row(self, tokens: list[int]) -> Encoded:
        if self._end_id is not None and (not tokens or tokens[-1] != self._end_id):
            tokens.append(self._end_id)
        ids = np.array(tokens, dtype=np.int32)
        limit = self._max_length or len(ids)
        return Encoded(ids[:limit], ids[:limit].copy(), len(ids) > limit)


class ClassEncoder:
    """Tokenises texts with the number of their class, which is its place among labels."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, max_length: int, labels: Sequence[str]) -> None:
        backend: Any = tokenizer
        self._backend = backend.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._max_length = max_length
        self._labels = {label: number for number, label in enumerate(labels)}

    @property
    def identity(self) -> tuple[object, ...]:
        """What, beside the tokenizer's files, decides what comes out."""
        return "class", tuple(self._labels), self._max_length

    def encode(self, rows: Sequence[LabelledText]) -> list[Encoded]:
        """Token ids and class of each text. A class that is not among the labels is -1, so the row does not count."""
        texts = [row.text for row in rows]
        encodings = encode_batch(self._backend, texts, special_tokens=True)
        return [self._row(encoding.ids, row.label) for encoding, row in zip(encodings, rows, strict=True)]

    def _row(self, tokens: list[int], label: str) -> Encoded:
        ids = np.array(tokens[: self._max_length], dtype=np.int32)
        number = self._labels.get(label, -1)
        return Encoded(ids, np.full_like(ids, IGNORED), len(tokens) > self._max_length, number)


def class_names(found: Sequence[str]) -> tuple[str, ...]:
    """The classes of a dataset in the order of their numbers: numbers by size, else texts by alphabet."""
    if all(NUMBER.fullmatch(label) for label in found):
        return tuple(sorted(found, key=int))
    return tuple(sorted(found))
