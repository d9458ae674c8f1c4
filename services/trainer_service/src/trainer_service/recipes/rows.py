"""The rows of a job's data as token ids, how they are split, and what must hold before any is trained on."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from modelkit.chat import ChatEncoder, Encoded
from modelkit.datasets import DataCache, DatasetReport, FileReport, JsonlDataset
from modelkit.datasets.index import unchanged
from modelkit.encoded import RowEncoder
from modelkit.errors import InvalidDataset, ModelkitError, Problem
from modelkit.in_order import in_order
from modelkit.template_fit import template_problems
from modelkit.tokenised import TokenFile, write_rows

CACHE_TOKENS = 1 << 27  # 1 GiB of ids and labels
FIRST_ROWS, SEARCH_ROWS = 8, 256
LOOK_EVERY = 16
SAY_SECONDS = 60.0

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


@dataclass(frozen=True, slots=True)
class Store:
    """The entry of a cache in which tokenised rows are kept, named after everything that they depend on.

    Others find it by the content of report's file, so nothing is kept that was read from another content.
    """

    cache: DataCache
    name: str
    report: FileReport

    def open(self) -> TokenFile | None:
        """The rows, when they are there."""
        entry = self.cache.find(self.name)
        return TokenFile(entry) if entry else None

    def fill(self, blocks: Iterable[Sequence[Encoded]]) -> None:
        """Keeps rows, unless they are there. Raises ValueError when the file was changed, OSError."""

        def write(folder: Path) -> None:
            with unchanged(self.report):
                write_rows(folder, blocks)

        self.cache.get(self.name, write)


class EncodedRows:
    """Rows of a dataset as token ids.

    Those asked for are tokenised at once and remembered as far as memory allows. With a store, prepare() tokenises all
    of them in the background; when they are stored, by whichever process, they are read from there.
    """

    def __init__(
        self,
        rows: Sequence[Any],
        encoder: RowEncoder,
        store: Store | None = None,
        *,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.counts = Counts()
        self._rows = rows
        self._encoder = encoder
        self._store = store
        self._say = say
        self._file: TokenFile | None = store.open() if store else None
        self._asked = 0
        self._known: dict[int, Encoded] = {}
        self._counted = np.zeros(len(rows), dtype=bool)
        self._room = CACHE_TOKENS

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, indices: Rows) -> list[Encoded]:
        """The rows at these positions. Raises InvalidTemplate, OSError, ValueError."""
        positions = [int(index) for index in indices]
        if (file := self._stored()) is not None:
            stored = [file.get(index) for index in positions]
            self._count(dict(zip(positions, stored, strict=True)))
            return stored
        known = self._known
        missing = [index for index in dict.fromkeys(positions) if index not in known]
        fresh: dict[int, Encoded] = {}
        if missing:
            fresh = dict(zip(missing, self._encoder.encode([self._rows[index] for index in missing]), strict=True))
            self._count(fresh)
        found = [fresh.get(index) or known[index] for index in positions]
        for index, encoded in fresh.items():
            if self._room >= len(encoded.input_ids):
                self._room -= len(encoded.input_ids)
                known[index] = encoded
        return found

    def lengths(self, indices: Rows) -> NDArray[np.int32]:
        """Tokens of each of these rows, 0 of those without anything to learn. Raises as get does."""
        if (file := self._stored()) is not None:
            at = np.asarray(indices, dtype=np.int64)
            return np.where(file.masked[at], 0, file.lengths(at)).astype(np.int32)
        pieces = np.array_split(np.asarray(indices), max(1, len(indices) // SEARCH_ROWS))
        rows = (row for piece in pieces for row in self.get(piece))
        return np.fromiter((0 if row.masked else len(row.input_ids) for row in rows), np.int32, len(indices))

    def prepare(self, delay: float) -> None:
        """Begins, some seconds from now, to tokenise and store every row, unless that was done before."""
        if self._store is not None and self._file is None:
            threading.Thread(target=self._fill_later, args=(delay,), name="tokenise", daemon=True).start()

    def fill(self) -> TokenFile | None:
        """Tokenises and stores every row, unless that was done before; None without a store. Raises as get does."""
        if self._store is not None and self._file is None:
            self._store.fill(self.blocks(self._say))
            self._file = self._store.open()
            self._known = {}
        return self._file

    def _fill_later(self, delay: float) -> None:
        threading.Event().wait(delay)
        # What goes wrong here shows where the row is asked for, or is a cache that has no room.
        with contextlib.suppress(OSError, ValueError, ModelkitError):
            self.fill()

    def blocks(self, say: Callable[[str], None] = lambda _: None) -> Iterator[list[Encoded]]:
        """Every row, tokenised; now and then it is said how far this is. Raises as get does."""
        spoken = time.monotonic()
        for done, block in enumerate(in_order(self._encode_block, range(0, len(self._rows), SEARCH_ROWS)), start=1):
            yield block
            if time.monotonic() - spoken > SAY_SECONDS:
                say(f"{done * SEARCH_ROWS:,} of {len(self._rows):,} rows tokenised")
                spoken = time.monotonic()

    def _encode_block(self, start: int) -> list[Encoded]:
        return self._encoder.encode(self._rows[start : start + SEARCH_ROWS])

    def _stored(self) -> TokenFile | None:
        """The stored rows; another process may have stored them meanwhile."""
        if self._file is None and self._store is not None:
            self._asked += 1
            if self._asked % LOOK_EVERY == 0:
                self._file = self._store.open()
        return self._file

    def _count(self, fresh: dict[int, Encoded]) -> None:
        for index, encoded in fresh.items():
            if not self._counted[index]:
                self._counted[index] = True
                self.counts.rows += 1
                self.counts.truncated += encoded.truncated
                self.counts.masked += encoded.masked


class DocumentRows(EncodedRows):
    """Documents cut into windows of at most so many tokens; no token is lost."""

    def __init__(self, file: TokenFile, documents: NDArray[np.int64], window: int) -> None:
        starts, ends = file.ends[documents], file.ends[documents + 1]
        windows = -(-(ends - starts) // window)
        document = np.repeat(np.arange(len(documents)), windows)
        place = np.arange(len(document)) - np.repeat(np.cumsum(windows) - windows, windows)
        self._starts = starts[document] + place * window
        self._ends = np.minimum(self._starts + window, ends[document])
        self._tokens = self._file = file
        self._store = None  # everything is tokenised already
        self.counts = Counts(rows=len(documents))

    def __len__(self) -> int:
        return len(self._starts)

    def get(self, indices: Rows) -> list[Encoded]:
        """The windows at these positions. Raises OSError."""
        return [self._tokens.window(int(self._starts[index]), int(self._ends[index])) for index in indices]

    def lengths(self, indices: Rows) -> NDArray[np.int32]:
        """Tokens of each of these windows."""
        at = np.asarray(indices, dtype=np.int64)
        lengths: NDArray[np.int32] = (self._ends[at] - self._starts[at]).astype(np.int32)
        return lengths


def require_valid(report: DatasetReport) -> None:
    """Raises InvalidDataset with every problem of the files."""
    if not report.valid:
        raise InvalidDataset([Problem("dataset", str(problem)) for problem in report.problems])


def require_trainable(rows: EncodedRows, order: NDArray[np.int64], max_length: int) -> None:
    """Looks until one row has something to learn. Raises InvalidDataset when max_seq_length cuts away all of them."""
    starts = [0, *range(FIRST_ROWS, len(order), SEARCH_ROWS)]
    for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
        if any(not row.masked for row in rows.get(order[start:end])):
            return
    message = f"all {len(order)} rows have their reply beyond max_seq_length ({max_length} tokens); raise it"
    raise InvalidDataset(Problem("dataset", message), reason="NOTHING_TO_TRAIN_ON")


def require_template_fits(encoder: ChatEncoder, rows: JsonlDataset, report: FileReport) -> None:
    """Raises InvalidDataset naming the shapes of conversations that the chat template does not show."""
    if problems := template_problems(encoder, rows, report):
        raise InvalidDataset([Problem("dataset", text) for text in problems], reason="INVALID_CHAT_TEMPLATE")


def as_json_lines(rows: JsonlDataset, positions: NDArray[np.int64]) -> Iterator[bytes]:
    """Rows as they stand in their file, a line each."""
    for position in positions:
        yield orjson.dumps(orjson.loads(rows.read_line(int(position))), option=orjson.OPT_APPEND_NEWLINE)
