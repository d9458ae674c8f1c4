"""Files of every kind that is read, as JSON Lines: one row a line, with a note of where each line came from."""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from modelkit import apart
from modelkit.datasets import origins
from modelkit.datasets.json_stream import holds_lines, read_objects
from modelkit.datasets.lines import BLOCK_BYTES, BYTE_ORDER_MARK, MAX_LINE_BYTES
from modelkit.datasets.problems import FIRST_LINES
from modelkit.datasets.texts import read_documents
from modelkit.errors import InvalidDataset, Problem

JSONL = (".jsonl", ".ndjson")
TEXT = (".txt", ".text")
# So many times as large as its sources, or so large at least, a converted file may be; a bomb would fill the disk.
MAX_GROWTH, FREE_BYTES = 200, 1 << 30
# What reading a Parquet file may take: memory, and processor time by its size in bytes, at so many bytes a second.
MEMORY_BYTES, LEAST_CPU_SECONDS, SLOWEST_BYTES = 2 << 30, 120, 1 << 20
DELIMITERS = ",;\t"  # of a .csv
VERSION = 2  # of what is written; another one makes converted files new


def is_jsonl(path: Path) -> bool:
    """Whether a file is JSON Lines as it stands."""
    return path.suffix.lower() in JSONL or (path.suffix.lower() == ".json" and holds_lines(path))


def convert(sources: list[Path], target: Path) -> None:
    """Writes all rows of several files to one in JSON Lines, with a note of their origins beside it.

    Raises InvalidDataset when a file is not what its ending says, OSError.
    """
    segments: list[origins.Segment] = []
    next_line = 1
    with target.open("wb") as opened:
        file: Any = _Bounded(opened, sources)
        for source in sources:
            unit, append = ("line", _copy) if is_jsonl(source) else WRITERS[source.suffix.lower()]
            segments.append(origins.Segment(next_line, source.name, unit))
            try:
                next_line += append(source, file)
            except UnicodeDecodeError as error:
                message = f"{source.name} is not UTF-8 text ({error.reason}); save it as UTF-8"
                raise InvalidDataset(Problem("dataset", message), reason="NOT_UTF8") from error
    origins.note(target, segments)


class _Bounded:
    """A file that takes as many bytes as may come of its sources."""

    def __init__(self, file: BinaryIO, sources: list[Path]) -> None:
        self._file = file
        self._left = max(FREE_BYTES, MAX_GROWTH * sum(source.stat().st_size for source in sources))

    def write(self, data: bytes) -> None:
        """Raises InvalidDataset when there is no end to it."""
        self._left -= len(data)
        if self._left < 0:
            message = f"its rows are more than {MAX_GROWTH} times as large as its files; convert it to JSON Lines"
            raise InvalidDataset(Problem("dataset", message), reason="UNREADABLE_FILE")
        self._file.write(data)


def _copy(source: Path, file: BinaryIO) -> int:
    """Copies lines as they are, so that whatever is wrong with them is found in the check."""
    lines, last = 0, b"\n"
    with source.open("rb") as reading:
        if reading.read(len(BYTE_ORDER_MARK)) != BYTE_ORDER_MARK:
            reading.seek(0)
        while block := reading.read(BLOCK_BYTES):
            file.write(block)
            lines, last = lines + block.count(b"\n"), block[-1:]
    if last != b"\n":
        file.write(b"\n")
        lines += 1
    return lines


def _write(rows: Iterator[Any], file: BinaryIO) -> int:
    written = 0
    for row in rows:
        file.write(orjson.dumps(row, default=str, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS))
        written += 1
    return written


def _json(source: Path, file: BinaryIO) -> int:
    return _write(read_objects(source), file)


def _text(source: Path, file: BinaryIO) -> int:
    return _write(({"text": document.decode("utf-8")} for document in read_documents(source)), file)


def _csv(source: Path, file: BinaryIO) -> int:
    """Rows of a file with a header. Raises InvalidDataset."""
    csv.field_size_limit(MAX_LINE_BYTES)
    return _write(_csv_rows(source, "\t" if source.suffix.lower() == ".tsv" else _delimiter(source)), file)


def _delimiter(source: Path) -> str:
    """A comma, or what names the columns where commas make one column of all: spreadsheets write semicolons wherever
    commas are for decimals."""
    with source.open("r", encoding="utf-8-sig", newline="") as text:
        first = text.readline(MAX_LINE_BYTES)
    columns = {delimiter: len(next(csv.reader([first], delimiter=delimiter), [])) for delimiter in DELIMITERS}
    return "," if columns[","] > 1 else max(DELIMITERS, key=lambda delimiter: columns[delimiter])


def _csv_rows(source: Path, delimiter: str) -> Iterator[dict[str, str]]:
    ragged: list[int] = []
    with source.open("r", encoding="utf-8-sig", newline="") as text:
        rows = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            header = next(rows, [])
            if len(set(header)) < len(header) or not all(header):
                raise _refusal(source, "has columns without a name, or two of one name, in its first line")
            for row in rows:
                if len(row) == len(header):
                    yield dict(zip(header, row, strict=True))
                elif row:
                    ragged.append(rows.line_num)
        except csv.Error as error:
            raise _refusal(source, f"cannot be read at line {rows.line_num}: {error}") from error
    if ragged:
        lines = ", ".join(map(str, ragged[:FIRST_LINES])) + (", ..." if len(ragged) > FIRST_LINES else "")
        words = f"has {len(ragged)} rows that do not have {len(header)} values as the first line has (lines {lines})"
        raise _refusal(source, f"{words}; quote values that hold {delimiter!r} or a line break")


def _parquet(source: Path, file: BinaryIO) -> int:
    """Its reader may be led to allocate or crash by what a file states, and runs apart."""
    bounds = apart.Bounds(MEMORY_BYTES, LEAST_CPU_SECONDS + source.stat().st_size // SLOWEST_BYTES)
    lines = 0
    try:
        with apart.running("modelkit.parquet_rows:write_rows", str(source), bounds=bounds) as rows:
            while block := rows.read(BLOCK_BYTES):
                file.write(block)
                lines += block.count(b"\n")
    except apart.Refused as error:
        raise _refusal(source, f"{error}; convert it to JSON Lines, or write it with smaller row groups") from error
    return lines


def _refusal(source: Path, words: str) -> InvalidDataset:
    return InvalidDataset(Problem("dataset", f"{source.name} {words}"), reason="UNREADABLE_FILE")


Writer = Callable[[Path, BinaryIO], int]
WRITERS: dict[str, tuple[str, Writer]] = {
    ".json": ("row", _json),
    ".csv": ("row", _csv),
    ".tsv": ("row", _csv),
    ".parquet": ("row", _parquet),
    **dict.fromkeys(TEXT, ("document", _text)),
}
