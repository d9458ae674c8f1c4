"""The rows of a job's data as token ids, how they are split, and what must hold before any is trained on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modelkit.chat import ChatEncoder, Encoded
from modelkit.datasets import DatasetReport, FileReport, JsonlDataset, Message
from modelkit.errors import InvalidDataset, InvalidTemplate, Problem

CACHE_TOKENS = 1 << 27  # 1 GiB of ids and labels
FIRST_ROWS, SEARCH_ROWS = 8, 256
MAX_SHAPES = 64

Rows = Sequence[int] | NDArray[np.int64]


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

    def lengths(self, indices: Rows) -> NDArray[np.int32]:
        """Tokens of each of these rows, 0 of those without anything to learn. Raises as get does."""
        pieces = np.array_split(np.asarray(indices), max(1, len(indices) // SEARCH_ROWS))
        rows = (row for piece in pieces for row in self.get(piece))
        return np.fromiter((0 if row.masked else len(row.input_ids) for row in rows), np.int32, len(indices))

    def _count(self, fresh: dict[int, Encoded]) -> None:
        for index, encoded in fresh.items():
            if not self._counted[index]:
                self._counted[index] = True
                self.counts.rows += 1
                self.counts.truncated += encoded.truncated
                self.counts.masked += encoded.masked


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
