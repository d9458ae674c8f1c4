"""Rows, and files that hold them, for tests of datasets."""

import csv
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from modelkit.datasets import DataCache, DatasetFiles, JsonlDataset, validate

ROWS = [{"instruction": f"Ask\n{number}", "input": "", "output": f"Täll, {number}"} for number in range(600)]
CONVERSATIONS = [[("user", row["instruction"]), ("assistant", row["output"])] for row in ROWS]


@pytest.fixture
def cache(tmp_path: Path) -> DataCache:
    return DataCache(tmp_path / "cache")


def conversations(files: DatasetFiles) -> list[Any]:
    report = validate(files)
    assert report.problems == ()
    return [[(turn["role"], turn["content"]) for turn in row] for row in JsonlDataset(report.train)]


def jsonl(path: Path, rows: list[Any] = ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_csv(path: Path, delimiter: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, members: dict[str, bytes]) -> Path:
    packing = {"gz": "w:gz", "tgz": "w:gz", "bz2": "w:bz2", "xz": "w:xz", "txz": "w:xz"}
    mode: Any = packing.get(path.name.rpartition(".")[2], "w")
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path
