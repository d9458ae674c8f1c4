"""Tokenised rows in files that are mapped into memory: written block by block, read at any place.

A token is stored as an int32: itself where it has a label, its bitwise complement where it has none.
"""

import hashlib
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from modelkit.encoded import IGNORED, Encoded

VERSION = 2  # of what is written; another one makes tokenised files new
TOKENS = "tokens.bin"
ENDS = "ends.npy"
CLASSES = "classes.npy"
TRUNCATED = "truncated.npy"
MASKED = "masked.npy"
# Files of a model directory that decide what its tokenizer does.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)


def tokenizer_sha256(directory: Path) -> str:
    """Identity of the tokenizer in a model directory. Raises OSError."""
    digest = hashlib.sha256()
    for name in TOKENIZER_FILES:
        path = directory / name
        if path.is_file():
            digest.update(f"{name}:{path.stat().st_size}:".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


class TokenWriter:
    """Writes rows into a directory, in order; memory holds their ends, 14 bytes a row. finish() makes them readable."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: BinaryIO = (folder / TOKENS).open("wb")
        self._ends: list[NDArray[np.int64]] = []
        self._classes: list[NDArray[np.int32]] = []
        self._truncated: list[NDArray[np.bool_]] = []
        self._masked: list[NDArray[np.bool_]] = []
        self._size = 0

    def write(self, rows: Sequence[Encoded]) -> None:
        """Appends rows. Raises OSError."""
        if not rows:
            return
        lengths = np.array([len(row.input_ids) for row in rows], dtype=np.int64)
        ids = np.concatenate([row.input_ids for row in rows])
        labels = np.concatenate([row.labels for row in rows])
        self._file.write(np.where(labels == IGNORED, ~ids, ids).astype(np.int32, copy=False).tobytes())
        ends = self._size + np.cumsum(lengths)
        self._size = int(ends[-1])
        self._ends.append(ends)
        self._classes.append(np.array([row.label for row in rows], dtype=np.int32))
        self._truncated.append(np.array([row.truncated for row in rows], dtype=np.bool_))
        self._masked.append(np.array([row.masked for row in rows], dtype=np.bool_))

    def finish(self) -> None:
        """Closes the files. Raises OSError."""
        self._file.close()
        np.save(self._folder / ENDS, np.concatenate([np.zeros(1, np.int64), *self._ends]))
        np.save(self._folder / CLASSES, np.concatenate([np.zeros(0, np.int32), *self._classes]))
        np.save(self._folder / TRUNCATED, np.concatenate([np.zeros(0, np.bool_), *self._truncated]))
        np.save(self._folder / MASKED, np.concatenate([np.zeros(0, np.bool_), *self._masked]))

    def close(self) -> None:
        """Closes the file of a writer that is given up."""
        self._file.close()


class TokenFile:
    """Rows that a TokenWriter wrote; only what is asked for is read from disk. Raises OSError, ValueError."""

    def __init__(self, folder: Path) -> None:
        self.ends: NDArray[np.int64] = np.load(folder / ENDS, mmap_mode="r")
        self.truncated: NDArray[np.bool_] = np.load(folder / TRUNCATED, mmap_mode="r")
        self.masked: NDArray[np.bool_] = np.load(folder / MASKED, mmap_mode="r")
        self._classes: NDArray[np.int32] = np.load(folder / CLASSES, mmap_mode="r")
        size = int(self.ends[-1])
        path = folder / TOKENS
        if path.stat().st_size != 4 * size:
            raise ValueError(f"{path} does not have the size that {ENDS} says")
        self._tokens: NDArray[np.int32] = (
            np.memmap(path, dtype=np.int32, mode="r") if size else np.zeros(0, dtype=np.int32)
        )

    @classmethod
    def of(cls, blocks: Iterable[Sequence[Encoded]]) -> "TokenFile":
        """Rows that are kept in a file without a name, for as long as they are used."""
        with tempfile.TemporaryDirectory(prefix="tunesmith-tokens-") as folder:
            write_rows(Path(folder), blocks)
            return cls(Path(folder))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def get(self, index: int) -> Encoded:
        """A row."""
        truncated = bool(self.truncated[index])
        return self.window(int(self.ends[index]), int(self.ends[index + 1]), int(self._classes[index]), truncated)

    def window(self, start: int, end: int, label: int = -1, truncated: bool = False) -> Encoded:
        """The tokens [start, end) of all rows laid end to end."""
        stored = np.array(self._tokens[start:end])
        learnt = stored >= 0
        return Encoded(np.where(learnt, stored, ~stored), np.where(learnt, stored, np.int32(IGNORED)), truncated, label)

    def lengths(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int32]:
        """Tokens of each row."""
        at = np.asarray(indices, dtype=np.int64)
        return (self.ends[at + 1] - self.ends[at]).astype(np.int32)


def write_rows(folder: Path, blocks: Iterable[Sequence[Encoded]]) -> None:
    """Writes rows into an empty directory. Raises OSError, and whatever blocks raise."""
    writer = TokenWriter(folder)
    try:
        for block in blocks:
            writer.write(block)
        writer.finish()
    finally:
        writer.close()
