"""Checks of datasets, remembered for as long as their files do not change."""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from modelkit import datasets
from modelkit.datasets import DatasetFiles, DatasetProblem

REMEMBERED = 128

# Identity of a file's content without reading it: path, size, time of change in nanoseconds, inode.
Stamp = tuple[str, int, int, int]


@dataclass(frozen=True, slots=True)
class DatasetCheck:
    """What a pass over every line of a dataset found. rows counts the training rows that are good."""

    rows: int
    format: str
    problems: tuple[DatasetProblem, ...]


class DatasetChecks:
    """Checks datasets; the check at submit and the one before training cost one pass. Safe to use from threads."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[Stamp, ...], DatasetCheck] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, files: DatasetFiles) -> DatasetCheck:
        """Reads every line unless it is known what is in them. Raises OSError."""
        stamps = _stamps(files)
        with self._lock:
            if (known := self._known.get(stamps)) is not None:
                self._known.move_to_end(stamps)
                return known
        check = self._read(files)
        if _stamps(files) == stamps:
            with self._lock:
                self._known[stamps] = check
                while len(self._known) > REMEMBERED:
                    self._known.popitem(last=False)
        return check

    def _read(self, files: DatasetFiles) -> DatasetCheck:
        report = datasets.validate(files)
        return DatasetCheck(report.rows, report.format, report.problems)


def _stamps(files: DatasetFiles) -> tuple[Stamp, ...]:
    return tuple(_stamp(path) for path in (files.train, files.validation, files.test) if path is not None)


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return str(path), status.st_size, status.st_mtime_ns, status.st_ino
