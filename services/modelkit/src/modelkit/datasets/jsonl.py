"""JSON Lines files: one pass that checks every line in bounded memory, then random access to the good ones."""

import os
import weakref
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import orjson

from modelkit.datasets.formats import Columns, Message, RowError, columns_of, to_messages
from modelkit.datasets.problems import DatasetProblem, ProblemCounter

MAX_LINE_BYTES = 16 << 20
BLOCK_BYTES = 1 << 20
MAX_LAYOUTS = 1024
MAX_SHAPES = 256
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class FileReport:
    """What a pass over a file found. offsets and lengths are the byte ranges of the good rows.

    shapes holds one row (its index) for each (number of messages, role of the first), as far as there is room.
    """

    path: Path
    rows: int
    format: str
    problems: tuple[DatasetProblem, ...]
    offsets: "array[int]" = field(repr=False)
    lengths: "array[int]" = field(repr=False)
    shapes: dict[tuple[int, str], int] = field(repr=False)


class RowReader:
    """Turns parsed rows into conversations; remembers which columns each layout of keys means."""

    def __init__(self) -> None:
        self._layouts: dict[tuple[str, ...], Columns] = {}

    def columns(self, row: dict[str, Any]) -> Columns:
        """The columns of a row. Raises RowError."""
        keys = tuple(row)
        known = self._layouts.get(keys)
        if known is None:
            known = columns_of(keys)
            if len(self._layouts) >= MAX_LAYOUTS:
                self._layouts.clear()
            self._layouts[keys] = known
        return known

    def messages(self, row: dict[str, Any]) -> list[Message]:
        """The conversation of a row. Raises RowError."""
        return to_messages(row, self.columns(row))


def read_lines(path: Path, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[tuple[int, bytes | None]]:
    """Yields (offset in bytes, line without its newline) of each line; None stands for a line that is too long.

    A byte order mark at the start is passed over. Memory stays below the block size plus twice the longest line
    allowed, whatever the file holds.
    """
    with path.open("rb", buffering=0) as file:
        offset, rest, skipping = 0, b"", False
        if file.read(len(BYTE_ORDER_MARK)) == BYTE_ORDER_MARK:
            offset = len(BYTE_ORDER_MARK)
        file.seek(offset)
        while block := file.read(BLOCK_BYTES):
            *lines, rest = (rest + block if rest else block).split(b"\n")
            for line in lines:
                end = offset + len(line) + 1
                yield offset, None if skipping or len(line) > max_line_bytes else line
                offset, skipping = end, False
            if skipping or len(rest) > max_line_bytes:
                offset, rest, skipping = offset + len(rest), b"", True
        if rest or skipping:
            yield offset, None if skipping else rest


def scan(path: Path, *, max_line_bytes: int = MAX_LINE_BYTES, stop_after: int = 0) -> FileReport:
    """Checks every line of a file, or, with stop_after, so many good rows. Raises OSError when it cannot be read."""
    counter = ProblemCounter(path.name)
    offsets, lengths = array("Q"), array("Q")
    shapes: dict[tuple[int, str], int] = {}
    reader, first_format, seen = RowReader(), "", False
    loads = orjson.loads
    for number, (offset, line) in enumerate(read_lines(path, max_line_bytes), start=1):
        if line is None:
            limit = f"{max_line_bytes >> 20} MiB" if max_line_bytes >> 20 else f"{max_line_bytes} bytes"
            counter.add("LINE_TOO_LONG", f"the line is longer than {limit}", "write one row per line", number)
            seen = True
            continue
        if not line or line.isspace():
            continue
        seen = True
        try:
            row = loads(line)
            if type(row) is not dict:
                raise _not_an_object(row)
            columns = reader.columns(row)
            messages = to_messages(row, columns)
        except RowError as error:
            counter.add(error.reason, error.message, error.hint, number)
            continue
        except ValueError:
            counter.add(*_unreadable(line), number)
            continue
        if columns.format != first_format:
            if first_format:
                counter.add(*_mixed(first_format, columns.format), number)
                continue
            first_format = columns.format
        shape = (len(messages), messages[0]["role"])
        if shape not in shapes and len(shapes) < MAX_SHAPES:
            shapes[shape] = len(offsets)
        offsets.append(offset)
        lengths.append(len(line))
        if len(offsets) == stop_after:
            break
    if not seen:
        counter.add("EMPTY_FILE", "the file is empty", "write one JSON object per line")
    return FileReport(path, len(offsets), first_format, counter.problems, offsets, lengths, shapes)


def _not_an_object(row: Any) -> RowError:
    hint = "write one JSON object per line"
    if isinstance(row, list):
        hint += "; the line is a JSON array, so write each of its items on a line of its own"
    return RowError("NOT_AN_OBJECT", "the line is not a JSON object", hint)


def _unreadable(line: bytes) -> tuple[str, str, str]:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return "NOT_UTF8", "the line is not UTF-8 text", "save the file as UTF-8"
    return "NOT_JSON", "the line is not JSON", "write one whole JSON object per line (JSON Lines)"


def _mixed(first: str, other: str) -> tuple[str, str, str]:
    message = f'the row has the format "{other}", the first good row of the file has "{first}"'
    return "MIXED_FORMATS", message, "use one format in a file"


class JsonlDataset(Sequence[list[Message]]):
    """The good rows of a scanned file as conversations; a row is read from disk when it is asked for.

    max_rows keeps the first rows only (0: all). close() closes the file, at the latest when the dataset is dropped.
    Raises OSError when the file has gone, ValueError when it changed.
    """

    def __init__(self, report: FileReport, *, max_rows: int = 0) -> None:
        self.path = report.path
        self._descriptor = os.open(report.path, os.O_RDONLY | os.O_CLOEXEC)
        self.close = weakref.finalize(self, os.close, self._descriptor)
        self._offsets, self._lengths = report.offsets, report.lengths
        self._rows = min(report.rows, max_rows) if max_rows else report.rows
        self._reader = RowReader()

    def __len__(self) -> int:
        return self._rows

    @overload
    def __getitem__(self, index: int) -> list[Message]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[Message]]: ...
    def __getitem__(self, index: int | slice) -> list[Message] | list[list[Message]]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(self._rows))]
        position = index + self._rows if index < 0 else index
        if not 0 <= position < self._rows:
            raise IndexError(index)
        line = os.pread(self._descriptor, self._lengths[position], self._offsets[position])
        return self._reader.messages(orjson.loads(line))
