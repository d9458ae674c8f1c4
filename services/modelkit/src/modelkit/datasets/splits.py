"""Which files of a directory are a dataset, and which split each belongs to."""

import os
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from modelkit.datasets.convert import JSONL, TEXT
from modelkit.errors import InvalidDataset, Problem

TRAIN, VALIDATION, TEST = "train", "validation", "test"
# File names of each split, the first that is there wins.
EXACT = {TRAIN: ("train",), VALIDATION: ("valid", "validation", "val", "dev", "eval"), TEST: ("test",)}
WORDS = {TRAIN: "train|training", VALIDATION: "valid|validation|val|dev|eval", TEST: "test|testing"}
# Kinds of files, the best first; of several kinds in a directory one is read, because it often holds the same again.
KINDS = ((*JSONL, ".json"), (".parquet",), (".csv", ".tsv"), TEXT)
SUFFIXES = tuple(suffix for kind in KINDS for suffix in kind)
NOT_DATA = re.compile(
    r"(readme|licen[cs]e|notice|requirements|manifest|config|state|dataset_(info|infos|dict))\b", re.I
)
MAX_DEPTH = 4
MAX_FILES = 10_000

Splits = dict[str, list[Path]]


def find_splits(
    directory: Path, *, field: str, may_enter: Callable[[Path], bool] = lambda _: True, shown: str = ""
) -> Splits:
    """The files of each split; there always are some to train on. shown is what messages call the directory.

    train.*, valid.* and test.* of any kind, else files whose name or folder says what they are for, else all files.
    A folder that may not be entered is passed over, so that no message tells what is in it. Raises InvalidDataset.
    """
    shown = shown or str(directory)
    if train := _exact(directory, EXACT[TRAIN]):
        return {
            TRAIN: [train],
            **{split: [file] for split in (VALIDATION, TEST) if (file := _exact(directory, EXACT[split]))},
        }
    every = list(islice(_data_files(directory, MAX_DEPTH, may_enter), MAX_FILES + 1))
    if len(every) > MAX_FILES:
        raise InvalidDataset(Problem(field, f"{shown} holds more than {MAX_FILES} data files"))
    files = _of_best_kind(every)
    splits: Splits = {}
    for file in files:
        splits.setdefault(_split_of(file.relative_to(directory)), []).append(file)
    unmarked = splits.pop("", [])
    if unmarked and TRAIN not in splits:
        splits[TRAIN] = unmarked
    if TRAIN not in splits:
        found = sorted(entry.name for entry in os.scandir(directory) if not entry.name.startswith("."))
        listed = ", ".join(found[:10]) or "nothing"
        message = f"{shown} has no train.jsonl; found: {listed}; other kinds are {', '.join(SUFFIXES[1:])}"
        raise InvalidDataset(Problem(field, message), reason="NO_TRAIN_FILE")
    return splits


def _exact(directory: Path, names: tuple[str, ...]) -> Path | None:
    candidates = (directory / f"{name}{suffix}" for name in names for suffix in SUFFIXES)
    return next((file for file in candidates if file.exists()), None)


def _data_files(directory: Path, depth: int, may_enter: Callable[[Path], bool]) -> Iterator[Path]:
    for entry in sorted(os.scandir(directory), key=lambda item: item.name):
        if entry.name.startswith((".", "_")):
            continue
        if entry.is_dir(follow_symlinks=False):
            if depth and may_enter(Path(entry.path)):
                yield from _data_files(Path(entry.path), depth - 1, may_enter)
        elif entry.name.lower().endswith(SUFFIXES) and not NOT_DATA.match(entry.name):
            yield Path(entry.path)


def _of_best_kind(files: list[Path]) -> list[Path]:
    for kind in KINDS:
        if found := [file for file in files if file.suffix.lower() in kind]:
            return found
    return []


def _split_of(file: Path) -> str:
    """The split that a file's name or folders speak of; empty for none."""
    for part in reversed((*file.parts[:-1], file.stem)):
        for split, words in WORDS.items():
            if re.search(rf"(?<![a-z])({words})(?![a-z])", part.lower()):
                return split
    return ""
