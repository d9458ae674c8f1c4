"""A finished model appears under its name whole or not at all."""

import asyncio
import os
from pathlib import Path

import pytest

from workerkit import output
from workerkit.output import OWNER, may_be_written, place


async def held() -> None:
    """The lease is ours."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "work" / "output"
    (folder / "deep").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "deep" / "config.json").write_text("{}")
    return folder


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


EXPECTED = {"model.safetensors", "deep/config.json", OWNER}


@pytest.mark.parametrize("linked", [True, False])
async def test_placed_in_one_step(source: Path, tmp_path: Path, linked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    if not linked:
        monkeypatch.setattr(os, "link", refuse)
    target = tmp_path / "out" / "model"
    assert await place(source, target, task_id="t", attempt=1, ensure=held) == target
    assert files(target) == EXPECTED
    assert (target / "model.safetensors").read_bytes() == b"weights"
    assert list(target.parent.iterdir()) == [target]


async def test_an_empty_directory_and_an_earlier_output_are_replaced(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    await place(source, target, task_id="t", attempt=1, ensure=held)
    (source / "new.txt").write_text("second")
    assert await place(source, target, task_id="t", attempt=2, ensure=held) == target
    assert files(target) == EXPECTED | {"new.txt"}
    assert {path.name for path in tmp_path.iterdir()} == {"model", "work"}


async def test_what_a_killed_attempt_left_is_removed(source: Path, tmp_path: Path) -> None:
    left = tmp_path / ".model.t-1.tmp"
    left.mkdir()
    (left / "half").write_text("")
    other = tmp_path / ".model.u-1.tmp"
    other.mkdir()
    await place(source, tmp_path / "model", task_id="t", attempt=2, ensure=held)
    assert not left.exists()
    assert other.exists()


async def test_others_files_are_left_alone(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "thesis.txt").write_text("mine")
    assert not may_be_written(target, "t")
    placed = await place(source, target, task_id="t", attempt=1, ensure=held)
    assert placed == tmp_path / "model-t"
    assert files(target) == {"thesis.txt"}
    assert files(placed) == EXPECTED


async def test_a_fenced_attempt_writes_nothing(source: Path, tmp_path: Path) -> None:
    async def lost() -> None:
        raise PermissionError("not ours")

    with pytest.raises(PermissionError):
        await place(source, tmp_path / "out" / "model", task_id="t", attempt=1, ensure=lost)
    assert list((tmp_path / "out").iterdir()) == []


async def test_cancelled_it_leaves_nothing(source: Path, tmp_path: Path) -> None:
    reached = asyncio.Event()

    async def never() -> None:
        reached.set()
        await asyncio.Event().wait()

    placing = asyncio.create_task(place(source, tmp_path / "out" / "model", task_id="t", attempt=1, ensure=never))
    await reached.wait()
    placing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await placing
    assert list((tmp_path / "out").iterdir()) == []


async def test_a_full_disk_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output, "sync", full)
    with pytest.raises(OSError, match="No space left"):
        await place(source, tmp_path / "out" / "model", task_id="t", attempt=1, ensure=held)
    assert list((tmp_path / "out").iterdir()) == []
