"""What a pass over a file found, kept for as long as the file does not change: a large file is read once."""

import contextlib
import dataclasses
import hashlib
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from modelkit.datasets.cache import DataCache
from modelkit.datasets.formats import Reading
from modelkit.datasets.jsonl import FileReport, scan
from modelkit.datasets.lines import read_lines
from modelkit.datasets.problems import DatasetProblem

VERSION = 2  # of what a report says: raised with every new check, so that no kept report passes it over
LEAST_BYTES = 1 << 20  # a smaller file is read faster than looked up
META = "report.json"
ARRAYS = ("offsets", "lengths", "lines")


def stamp(path: Path) -> tuple[str, int, int, int, int]:
    """Identity of a file's content without reading it: path, size, times of change in nanoseconds, inode.

    The second time is that of the inode's change, which nobody can set back.
    """
    status = path.stat()
    return str(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


@contextlib.contextmanager
def unchanged(report: FileReport) -> Iterator[None]:
    """Raises ValueError when a file, as it was within, is not what the check has seen; OSError."""
    before = stamp(report.path)
    yield
    digest = hashlib.sha256()
    for _ in read_lines(report.path, see=digest.update):
        pass
    if digest.hexdigest() != report.sha256 or stamp(report.path) != before:
        raise ValueError(f"{report.path} was changed while it was read; start again when it is complete")


def key_of(*parts: object) -> str:
    """A name for what is made from these."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:40]


def checked(path: Path, reading: Reading, cache: DataCache | None, *, trained_on: bool = True) -> FileReport:
    """As scan; the pass over a large file is made once. Raises OSError."""
    before = stamp(path)
    if cache is None or before[1] < LEAST_BYTES:
        return scan(path, reading, trained_on=trained_on)
    name = f"index-{key_of(VERSION, before, reading, trained_on)}"
    if entry := cache.find(name):
        return _load(entry, path, reading)
    report = scan(path, reading, trained_on=trained_on)
    if stamp(path) == before:
        with cache.incoming() as folder:
            _save(report, folder)
            cache.add(name, folder)
    return report


def _save(report: FileReport, folder: Path) -> None:
    for name in ARRAYS:
        (folder / f"{name}.u64").write_bytes(memoryview(getattr(report, name)).cast("B"))
    content = {
        "format": report.format,
        "problems": [dataclasses.asdict(problem) for problem in report.problems],
        "shapes": [[*shape, index] for shape, index in report.shapes.items()],
        "labels": report.labels,
        "sha256": report.sha256,
        "size": report.size,
    }
    (folder / META).write_bytes(orjson.dumps(content))


def _load(entry: Path, path: Path, reading: Reading) -> FileReport:
    content: dict[str, Any] = orjson.loads((entry / META).read_bytes())
    arrays = {name: _mapped(entry / f"{name}.u64") for name in ARRAYS}
    return FileReport(
        path=path,
        rows=len(arrays["offsets"]),
        format=content["format"],
        problems=tuple(DatasetProblem(**problem) for problem in content["problems"]),
        shapes={(turns, first, tools): index for turns, first, tools, index in content["shapes"]},
        labels=content["labels"],
        sha256=content["sha256"],
        size=content["size"],
        reading=reading,
        **arrays,
    )


def _mapped(path: Path) -> "memoryview[int]":
    if not path.stat().st_size:
        return memoryview(b"").cast("Q")
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)).cast("Q")
