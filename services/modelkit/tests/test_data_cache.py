"""What is worked out from data is kept within a limit, whole, and for as long as it is in use."""

import os
from pathlib import Path

import pytest

from modelkit.datasets import DataCache, DatasetFiles, JsonlDataset, index, validate
from services.modelkit.tests.dataset_files import cache, jsonl

__all__ = ["cache"]


def test_large_files_are_looked_up(tmp_path: Path, cache: DataCache) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"instruction": "q" * 400, "output": "a"}] * 3000)
    first, second = (validate(DatasetFiles(path), cache).train for _ in range(2))
    assert len(list(cache.root.glob("index-*"))) == 1
    assert list(first.offsets) == list(second.offsets)
    assert (first.sha256, first.shapes, first.size) == (second.sha256, second.shapes, second.size)
    assert JsonlDataset(second)[2999] == JsonlDataset(first)[2999]
    jsonl(path, [{"instruction": "q" * 400, "output": "a"}] * 3001)
    assert validate(DatasetFiles(path), cache).rows == 3001


def test_a_report_of_former_checks_is_not_used(
    tmp_path: Path, cache: DataCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version 1 did not look for a named column of system texts."""
    path = jsonl(tmp_path / "a.jsonl", [{"instruction": "q" * 400, "output": "a"}] * 3000)
    with monkeypatch.context() as before:
        before.setattr(index, "VERSION", 1)
        validate(DatasetFiles(path), cache)
    validate(DatasetFiles(path), cache)
    assert len(list(cache.root.glob("index-*"))) == 2


def test_a_file_whose_time_was_set_back_is_read_again(tmp_path: Path, cache: DataCache) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"instruction": "q" * 400, "output": "a"}] * 3000)
    before, times = validate(DatasetFiles(path), cache).train, path.stat()
    path.write_bytes(path.read_bytes().replace(b'"a"', b'"b"'))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert validate(DatasetFiles(path), cache).train.sha256 != before.sha256


def test_a_cache_keeps_what_was_used_last(tmp_path: Path) -> None:
    cache = DataCache(tmp_path / "cache", limit_bytes=2500)

    def fill(folder: Path) -> None:
        (folder / "content").write_bytes(bytes(1000))

    for number in range(3):
        os.utime(cache.get(f"entry-{number}", fill), (number, number))
    cache.trim()
    assert sorted(path.name for path in cache.root.glob("entry-*")) == ["entry-1", "entry-2"]
    cache.find("entry-1")
    os.utime(cache.get("entry-3", fill), (3, 3))
    cache.trim()
    assert sorted(path.name for path in cache.root.glob("entry-*")) == ["entry-1", "entry-3"]


def test_a_cache_holds_nothing_half_made(tmp_path: Path) -> None:
    cache = DataCache(tmp_path / "cache")

    def fail(folder: Path) -> None:
        (folder / "content").write_bytes(bytes(1000))
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        cache.get("entry", fail)
    assert cache.find("entry") is None
    assert not list((cache.root / ".incoming").iterdir())
    dead = cache.root / ".incoming" / "dead"
    dead.mkdir()
    os.utime(dead, (0, 0))
    with cache.incoming() as alive:
        os.utime(alive, (0, 0))
        cache.trim()
        assert not dead.exists()
        assert alive.exists()
