"""Rows that say the same, exactly or nearly: hashes of whole texts, and MinHash with one permutation.

Sketches: one permutation hashing with densification (Li, Owen and Zhang, 2012; Shrivastava and Li, 2014); candidates:
locality-sensitive hashing in bands (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, chapter 3).
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from modelkit.datasets.formats import LabelledText, Row

SHINGLE_BYTES = 8
BINS = 64
BANDS, BAND_ROWS = 16, 4
SIMILAR = 0.8  # share of a sketch that is equal, an estimate of the Jaccard similarity of the shingles
BLOCK_ROWS = 512
MAX_ROWS = 500_000
EMPTY = np.uint32(0xFFFFFFFF)
MIX = np.uint64(0x9E3779B97F4A7C15)

Hashes = NDArray[np.uint64]
Sketches = NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Numbers of rows that repeat an earlier one exactly, and nearly; the first pairs of each, positions from 0."""

    exact: int
    near: int
    exact_pairs: tuple[tuple[int, int], ...]
    near_pairs: tuple[tuple[int, int], ...]


def text_of(row: Row) -> str:
    """All that a row says."""
    if isinstance(row, list):
        return "\n".join(turn["content"] for turn in row)
    return f"{row.text}\n{row.label}" if isinstance(row, LabelledText) else row


def hashes_of(rows: Iterable[Row]) -> Hashes:
    """A hash of what each row says."""
    digests = (hashlib.blake2b(text_of(row).encode(errors="replace"), digest_size=8).digest() for row in rows)
    return np.frombuffer(b"".join(digests), dtype=np.uint64)


def find_duplicates(rows: Sequence[Row], hashes: Hashes, pairs: int = 10) -> Duplicates:
    """Duplicates among rows with these hashes; near ones among the first MAX_ROWS."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    again = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1
    first_of = np.searchsorted(ordered, ordered[again])
    repeated = order[again]
    exact = sorted(zip(repeated.tolist(), order[first_of].tolist(), strict=True))
    unique = np.setdiff1d(np.arange(len(hashes)), repeated)[:MAX_ROWS]
    near = _near_pairs(sketches_of(text_of(rows[int(index)]) for index in unique))
    found = sorted((int(unique[later]), int(unique[earlier])) for later, earlier in near.items())
    return Duplicates(
        exact=len(exact),
        near=len(found),
        exact_pairs=tuple((earlier, later) for later, earlier in exact[:pairs]),
        near_pairs=tuple((earlier, later) for later, earlier in found[:pairs]),
    )


def sketches_of(texts: Iterable[str]) -> Sketches:
    """A sketch of each text, of shape (texts, BINS)."""
    remaining = iter(texts)
    blocks: list[Sketches] = []
    while block := [" ".join(text.lower().split()).encode(errors="replace") for text in islice(remaining, BLOCK_ROWS)]:
        blocks.append(_sketch(block))
    return np.concatenate(blocks) if blocks else np.zeros((0, BINS), np.uint32)


def _sketch(texts: list[bytes]) -> Sketches:
    """The least hash of the shingles that fall into each bin; an empty bin takes from the next that is not."""
    padded = [text.ljust(SHINGLE_BYTES) for text in texts]
    data = np.frombuffer(b"".join(padded), dtype=np.uint8).astype(np.uint64)
    lengths = np.array([len(text) for text in padded])
    windows = data[: len(data) - SHINGLE_BYTES + 1].copy()
    for place in range(1, SHINGLE_BYTES):
        windows |= data[place : place + len(windows)] << np.uint64(8 * place)
    row = np.repeat(np.arange(len(texts)), lengths)[: len(windows)]
    inside = np.arange(len(windows)) + SHINGLE_BYTES <= np.cumsum(lengths)[row]
    windows, row = windows[inside] * MIX, row[inside]
    windows ^= windows >> np.uint64(29)
    windows *= MIX
    bins = (windows >> np.uint64(58)).astype(np.int64)
    sketch = np.full(len(texts) * BINS, EMPTY)
    np.minimum.at(sketch, row * BINS + bins, (windows & np.uint64(0x7FFFFFFF)).astype(np.uint32))
    return _densified(sketch.reshape(len(texts), BINS))


def _densified(sketch: Sketches) -> Sketches:
    for distance in (1, 2, 4, 8, 16, 32):
        moved = np.roll(sketch, -distance, axis=1)
        sketch = np.where(sketch == EMPTY, np.where(moved == EMPTY, EMPTY, moved), sketch)
    return sketch


def _near_pairs(sketches: Sketches) -> dict[int, int]:
    """For each row that is nearly the same as an earlier one, such a row."""
    found: dict[int, int] = {}
    for later, earlier in _candidates(sketches):
        alike = (sketches[later] == sketches[earlier]).mean(axis=1) >= SIMILAR
        for one, other in zip(later[alike].tolist(), earlier[alike].tolist(), strict=True):
            found[one] = min(found.get(one, other), other)
    return found


def _candidates(sketches: Sketches) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows of one bucket with the first and with the one before them, band by band."""
    rows = len(sketches)
    for band in range(BANDS):
        part = sketches[:, band * BAND_ROWS : (band + 1) * BAND_ROWS].astype(np.uint64)
        keys = np.zeros(rows, dtype=np.uint64)
        for column in range(BAND_ROWS):
            keys = (keys ^ part[:, column]) * MIX
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        member = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1
        if not len(member):
            continue
        first = np.searchsorted(ordered, ordered[member])
        yield order[member], order[first]
        yield order[member], order[member - 1]
