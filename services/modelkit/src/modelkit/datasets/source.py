"""Where a dataset's files lie, and what a check of all of them says."""

import os
from dataclasses import dataclass
from pathlib import Path

from modelkit.datasets.formats import Message
from modelkit.datasets.jsonl import FileReport, JsonlDataset, scan
from modelkit.datasets.problems import DatasetProblem
from modelkit.errors import InvalidDataset, Problem
from modelkit.paths import AllowedRoots

TRAIN = ("train.jsonl",)
VALIDATION = ("valid.jsonl", "validation.jsonl", "val.jsonl")
TEST = ("test.jsonl",)
OTHER_KINDS = {
    ".zip": "unpack the archive first",
    ".tar": "unpack the archive first",
    ".gz": "unpack the file first",
    ".tgz": "unpack the archive first",
    ".csv": "convert it to JSON Lines, one object per line",
    ".parquet": "convert it to JSON Lines, one object per line",
}


@dataclass(frozen=True, slots=True)
class DatasetFiles:
    """The files of a dataset's splits."""

    train: Path
    validation: Path | None = None
    test: Path | None = None


@dataclass(frozen=True, slots=True)
class DatasetReport:
    """A check of every split. rows counts the training rows that are good, format is theirs."""

    valid: bool
    rows: int
    format: str
    problems: tuple[DatasetProblem, ...]
    train: FileReport
    validation: FileReport | None = None
    test: FileReport | None = None


def locate(
    path: Path, *, validation: Path | None = None, roots: AllowedRoots | None = None, field: str = "dataset.path"
) -> DatasetFiles:
    """The files of a dataset: a file, or a directory with train.jsonl and optionally valid.jsonl and test.jsonl.

    An explicit validation file wins over one found in the directory. With roots, no file may lead out of them by a
    link. Raises InvalidDataset.
    """
    if not path.is_dir():
        files = DatasetFiles(path, validation)
    else:
        train = _first(path, TRAIN)
        if train is None:
            found = sorted(entry.name for entry in os.scandir(path) if not entry.name.startswith("."))
            listed = ", ".join(found[:10]) or "nothing"
            raise InvalidDataset(Problem(field, f"{path} has no train.jsonl; found: {listed}"), reason="NO_TRAIN_FILE")
        files = DatasetFiles(train, validation or _first(path, VALIDATION), _first(path, TEST))
    problems = [
        Problem(field, problem)
        for file in (files.train, files.validation, files.test)
        if file is not None and (problem := _refusal(file, roots))
    ]
    if problems:
        raise InvalidDataset(problems)
    return files


def validate(files: DatasetFiles) -> DatasetReport:
    """Checks every line of every split."""
    train = scan(files.train)
    validation = scan(files.validation) if files.validation else None
    test = scan(files.test) if files.test else None
    problems = tuple(problem for report in (train, validation, test) if report for problem in report.problems)
    return DatasetReport(not problems, train.rows, train.format, problems, train, validation, test)


def preview(files: DatasetFiles, rows: int = 5) -> list[list[Message]]:
    """The first good training rows as conversations."""
    if rows < 1:
        return []
    dataset = JsonlDataset(scan(files.train, stop_after=rows))
    try:
        return dataset[:]
    finally:
        dataset.close()


def _first(directory: Path, names: tuple[str, ...]) -> Path | None:
    return next((directory / name for name in names if (directory / name).exists()), None)


def _refusal(file: Path, roots: AllowedRoots | None) -> str:
    if roots is not None and not roots.contains(file):
        return f"{file} leads out of the allowed directories ({roots})"
    if not file.is_file():
        return f"{file} is not a file" if file.exists() else f"{file} does not exist"
    if advice := OTHER_KINDS.get(file.suffix.lower()):
        return f"{file.name} is not a JSON Lines file; {advice}"
    if not os.access(file, os.R_OK):
        return f"{file} cannot be read by this user"
    return ""
