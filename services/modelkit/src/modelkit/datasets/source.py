"""Where a dataset's files lie, brought into JSON Lines, and what a check of all of them says."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from modelkit.datasets.archives import is_archive, unpack
from modelkit.datasets.cache import DataCache
from modelkit.datasets.convert import VERSION, convert, is_jsonl
from modelkit.datasets.formats import Reading, Row
from modelkit.datasets.index import checked, key_of, stamp
from modelkit.datasets.jsonl import FileReport, JsonlDataset, scan
from modelkit.datasets.origins import Origins
from modelkit.datasets.problems import DatasetProblem
from modelkit.datasets.splits import SUFFIXES, TEST, TRAIN, VALIDATION, Splits, find_splits
from modelkit.errors import InvalidDataset, Problem
from modelkit.paths import AllowedRoots


@dataclass(frozen=True, slots=True)
class DatasetFiles:
    """The files of a dataset's splits, each in JSON Lines, and how they are read."""

    train: Path
    validation: Path | None = None
    test: Path | None = None
    reading: Reading = field(default_factory=Reading)


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
    path: Path,
    cache: DataCache,
    *,
    validation: Path | None = None,
    roots: AllowedRoots | None = None,
    reading: Reading | None = None,
    field: str = "dataset.path",
) -> DatasetFiles:
    """The files of a dataset: a file, a directory or an archive; what is not JSON Lines is converted once.

    An explicit validation file wins over one found in the directory. With roots, no file may lead out of them by a
    link. Raises InvalidDataset.
    """
    reading = reading or Reading()
    require_columns(reading, f"{field.rpartition('.')[0]}.columns")
    splits = _splits(path, cache, roots, field)
    if validation is not None:
        splits[VALIDATION] = _splits(validation, cache, roots, f"{field.rpartition('.')[0]}.validation_path")[TRAIN]
    allowed = AllowedRoots(roots.roots, private=roots.private, own=[*roots.own, cache.root]) if roots else None
    problems = [
        Problem(field, refusal) for files in splits.values() for file in files if (refusal := _refusal(file, allowed))
    ]
    if problems:
        raise InvalidDataset(problems)
    ready = {split: _as_jsonl(files, cache, field) for split, files in splits.items()}
    return DatasetFiles(ready[TRAIN], ready.get(VALIDATION), ready.get(TEST), reading)


def require_columns(reading: Reading, field: str) -> None:
    """Raises InvalidDataset when the columns that a user named contradict each other."""
    problems = [Problem(field, text) for text in reading.columns.problems(reading.objective)]
    if problems:
        raise InvalidDataset(problems, reason="INVALID_COLUMNS")


def validate(files: DatasetFiles, cache: DataCache | None = None) -> DatasetReport:
    """Checks every line of every split. Raises OSError."""
    train = checked(files.train, files.reading, cache)
    validation = checked(files.validation, files.reading, cache, trained_on=False) if files.validation else None
    test = checked(files.test, files.reading, cache, trained_on=False) if files.test else None
    others = [report for report in (validation, test) if report is not None]
    found = [problem for report in (train, *others) for problem in report.problems]
    problems = (*found, *(problem for report in others for problem in _unknown_classes(train, report)))
    return DatasetReport(not problems, train.rows, train.format, problems, train, validation, test)


def _unknown_classes(train: FileReport, other: FileReport) -> list[DatasetProblem]:
    """What a split asks for that the training split does not teach."""
    unknown = sorted(set(other.labels) - set(train.labels)) if not train.reading.labels else []
    if not unknown:
        return []
    listed = ", ".join(repr(label[:40]) for label in unknown[:5])
    hint = "add such rows to the training split, remove these, or list all classes in labels"
    file = Origins.of(other.path).file
    count = sum(other.labels[label] for label in unknown)
    return [DatasetProblem(file, "UNKNOWN_LABEL", f"no training row has the class {listed}", hint, count)]


def preview(files: DatasetFiles, rows: int = 5) -> list[Row]:
    """The first good training rows."""
    if rows < 1:
        return []
    dataset = JsonlDataset(scan(files.train, files.reading, stop_after=rows))
    try:
        return dataset[:]
    finally:
        dataset.close()


def _splits(path: Path, cache: DataCache, roots: AllowedRoots | None, field: str) -> Splits:
    if path.is_dir():
        return find_splits(path, field=field, may_enter=roots.contains if roots else lambda _: True)
    if refusal := _refusal(path, roots):
        raise InvalidDataset(Problem(field, refusal))
    if not is_archive(path):
        return {TRAIN: [path]}
    try:
        entry = cache.get(f"archive-{key_of(VERSION, stamp(path))}", lambda folder: unpack(path, folder))
    except InvalidDataset as error:
        raise _of_field(error, field) from error
    return find_splits(entry, field=field, shown=path.name)


def _as_jsonl(files: list[Path], cache: DataCache, field: str) -> Path:
    if len(files) == 1 and is_jsonl(files[0]):
        return files[0]
    stamps = [stamp(file) for file in files]
    try:
        entry = cache.get(f"rows-{key_of(VERSION, stamps)}", lambda folder: convert(files, folder / "rows.jsonl"))
    except InvalidDataset as error:
        raise _of_field(error, field) from error
    return entry / "rows.jsonl"


def _of_field(error: InvalidDataset, field: str) -> InvalidDataset:
    problems = [Problem(field, problem.message) for problem in error.problems]
    return type(error)(problems, reason=error.reason)


def _refusal(file: Path, roots: AllowedRoots | None) -> str:
    if roots is not None and not roots.contains(file):
        return f"{file} leads out of the allowed directories ({roots})"
    if not file.is_file():
        return f"{file} is not a file" if file.exists() else f"{file} does not exist"
    if not (is_archive(file) or file.name.lower().endswith(SUFFIXES)):
        kinds = ", ".join((*SUFFIXES, ".zip", ".tar", ".gz"))
        return f"{file.name} is not of a kind that is read; name it after what it holds: {kinds}"
    if not os.access(file, os.R_OK):
        return f"{file} cannot be read by this user"
    return ""
