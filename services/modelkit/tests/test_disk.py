"""Bringing files to disk beside the writing of more."""

import errno
import os
from pathlib import Path
from threading import Event

import pytest

from modelkit.disk import flushing


def test_a_file_is_brought_to_disk_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the thread that does it has ended afterwards."""
    flushed, real = Event(), os.fdatasync

    def flush(descriptor: int) -> None:
        real(descriptor)
        flushed.set()

    monkeypatch.setattr(os, "fdatasync", flush)
    with (tmp_path / "weights").open("wb") as file, flushing(file.fileno()):
        file.write(b"x" * 4096)
        file.flush()
        assert flushed.wait(60)
    assert (tmp_path / "weights").read_bytes() == b"x" * 4096


def test_a_disk_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel reports a lost page once; whoever syncs later would not hear of it."""
    tried = Event()

    def flush(_: int) -> None:
        tried.set()
        raise OSError(errno.EIO, "the disk has lost a page")

    monkeypatch.setattr(os, "fdatasync", flush)
    with (
        (tmp_path / "weights").open("wb") as file,
        pytest.raises(OSError, match="lost a page"),
        flushing(file.fileno()),
    ):
        assert tried.wait(60)
