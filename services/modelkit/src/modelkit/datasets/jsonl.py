"""JSON Lines files: one pass that checks every line in bounded memory, then random access to the good ones."""

import hashlib
import os
import weakref
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, overload

import orjson

from modelkit.datasets.columns import CLASSIFICATION, EXPECTED, RowError
from modelkit.datasets.formats import LabelledText, Reading, Row, RowReader, to_row
from modelkit.datasets.lines import MAX_LINE_BYTES, read_lines
from modelkit.datasets.origins import Origins
from modelkit.datasets.problems import DatasetProblem, ProblemCounter

MAX_SHAPES = 256
MAX_LABELS = 10_000
FEW_ROWS = 20

# Unsigned integers of 8 bytes, in memory or mapped from a file.
Integers: TypeAlias = "array[int] | memoryview[int]"
# Number of messages, role of the first, and whether a tool speaks.
Shape = tuple[int, str, bool]


@dataclass(frozen=True, slots=True)
class FileReport:
    """What a pass over a file found. offsets and lengths are the byte ranges of the good rows, lines their numbers.

    shapes holds one row (its index) for each shape of conversation, as far as there is room; labels counts the rows of
    each class; sha256 is that of the file, size the bytes of the good rows.
    """

    path: Path
    rows: int
    format: str
    problems: tuple[DatasetProblem, ...]
    offsets: Integers = field(repr=False)
    lengths: Integers = field(repr=False)
    lines: Integers = field(repr=False)
    shapes: dict[Shape, int] = field(repr=False)
    labels: dict[str, int] = field(default_factory=dict, repr=False)
    sha256: str = ""
    size: int = 0
    reading: Reading = field(default_factory=Reading)


class _Scan:
    """The state of a pass over a file."""

    def __init__(self, path: Path, reading: Reading, max_line_bytes: int) -> None:
        self.path, self.reading, self.max_line_bytes = path, reading, max_line_bytes
        self.counter = ProblemCounter(Origins.of(path))
        self.offsets, self.lengths, self.lines = array("Q"), array("Q"), array("Q")
        self.shapes: dict[Shape, int] = {}
        self.labels: Counter[str] = Counter()
        self.format = ""
        self._reader = RowReader(reading)

    def take(self, number: int, offset: int, line: bytes | None) -> bool:
        """Notes a line. False for a blank one."""
        if line is None:
            limit = self.max_line_bytes
            words = f"{limit >> 20} MiB" if limit >> 20 else f"{limit} bytes"
            self.counter.add("LINE_TOO_LONG", f"the line is longer than {words}", "write one row per line", number)
            return True
        if not line or line.isspace():
            return False
        try:
            row = orjson.loads(line)
            if type(row) is not dict:
                raise _not_an_object(row)
            columns = self._reader.columns(row)
            self._keep(number, offset, len(line), columns.format, to_row(row, columns, self.reading.labels))
        except RowError as error:
            self.counter.add(error.reason, error.message, error.hint, number)
        except ValueError:
            self.counter.add(*_unreadable(line), number)
        return True

    def _keep(self, number: int, offset: int, length: int, form: str, row: Row) -> None:
        if form != self.format:
            if self.format:
                raise _mixed(self.format, form)
            self.format = form
        if isinstance(row, list):
            shape = (len(row), row[0]["role"], any(turn["role"] == "tool" for turn in row))
            if shape not in self.shapes and len(self.shapes) < MAX_SHAPES:
                self.shapes[shape] = len(self.offsets)
        elif isinstance(row, LabelledText) and (len(self.labels) <= MAX_LABELS or row.label in self.labels):
            self.labels[row.label] += 1
        self.offsets.append(offset)
        self.lengths.append(length)
        self.lines.append(number)

    def check_columns(self) -> None:
        """Notes a column of system messages that is named and in no row; rows may lack it, but not all of them."""
        system = self.reading.columns.system
        if system and self.offsets and not self._reader.met_system:
            self.counter.add(
                "MISSING_COLUMNS", f'no row has the column "{system}"', "correct system_column, or omit it"
            )

    def check_labels(self) -> None:
        """Notes what makes the labels of the whole file no classes."""
        known, rows = len(self.labels), len(self.offsets)
        if not rows or self.reading.objective != CLASSIFICATION:
            return
        if known == 1 and not self.reading.labels:
            hint = "a classifier needs rows of at least two classes"
            self.counter.add("ONE_LABEL", f"every row has the class {next(iter(self.labels))[:40]!r}", hint)
        if known > MAX_LABELS or (known > rows / 2 and rows >= FEW_ROWS):
            words = f"{'more than ' if known > MAX_LABELS else ''}{min(known, MAX_LABELS)} classes for {rows} rows"
            self.counter.add("TOO_MANY_LABELS", words, "name the column that holds the class with label_column")


def scan(
    path: Path,
    reading: Reading | None = None,
    *,
    max_line_bytes: int = MAX_LINE_BYTES,
    stop_after: int = 0,
    trained_on: bool = True,
) -> FileReport:
    """Checks every line of a file, or, with stop_after, so many good rows. Raises OSError when it cannot be read.

    What is trained on must have several classes, when classes are to be learnt.
    """
    state = _Scan(path, reading or Reading(), max_line_bytes)
    digest = hashlib.sha256()
    seen = False
    for number, (offset, line) in enumerate(read_lines(path, max_line_bytes, digest.update), start=1):
        seen = state.take(number, offset, line) or seen
        if stop_after and len(state.offsets) == stop_after:
            break
    else:
        if not seen:
            hint = f"write one row per line, with {EXPECTED[state.reading.objective]}"
            state.counter.add("EMPTY_FILE", "the file is empty", hint)
        if trained_on:
            state.check_labels()
            state.check_columns()
    return FileReport(
        path=path,
        rows=len(state.offsets),
        format=state.format,
        problems=state.counter.problems,
        offsets=state.offsets,
        lengths=state.lengths,
        lines=state.lines,
        shapes=state.shapes,
        labels=dict(state.labels),
        sha256=digest.hexdigest(),
        size=sum(state.lengths),
        reading=state.reading,
    )


def _not_an_object(row: Any) -> RowError:
    hint = "write one JSON object per line"
    if isinstance(row, list):
        hint += "; the line is a JSON array, so write each of its items on a line of its own, or name the file .json"
    return RowError("NOT_AN_OBJECT", "the line is not a JSON object", hint)


def _unreadable(line: bytes) -> tuple[str, str, str]:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return "NOT_UTF8", "the line is not UTF-8 text", "save the file as UTF-8"
    return "NOT_JSON", "the line is not JSON", "write one whole JSON object per line (JSON Lines)"


def _mixed(first: str, other: str) -> RowError:
    message = f'the row has the format "{other}", the first good row of the file has "{first}"'
    return RowError("MIXED_FORMATS", message, "use one format in a file")


class JsonlDataset(Sequence[Row]):
    """The good rows of a scanned file; a row is read from disk when it is asked for.

    max_rows keeps the first rows only (0: all). close() closes the file, at the latest when the dataset is dropped.
    Raises OSError when the file has gone, ValueError when it changed.
    """

    def __init__(self, report: FileReport, *, max_rows: int = 0) -> None:
        self.path = report.path
        self._descriptor = os.open(report.path, os.O_RDONLY | os.O_CLOEXEC)
        self.close = weakref.finalize(self, os.close, self._descriptor)
        self._offsets, self._lengths = report.offsets, report.lengths
        self._rows = min(report.rows, max_rows) if max_rows else report.rows
        self._reader = RowReader(report.reading)

    def __len__(self) -> int:
        return self._rows

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(self._rows))]
        position = index + self._rows if index < 0 else index
        if not 0 <= position < self._rows:
            raise IndexError(index)
        line = self.read_line(position)
        try:
            return self._reader.read(orjson.loads(line))
        except RowError as error:
            raise ValueError(f"row {position + 1} of {self.path} changed: {error.message}") from error

    def read_line(self, index: int) -> bytes:
        """The bytes of a row as they stand in the file."""
        return os.pread(self._descriptor, self._lengths[index], self._offsets[index])
