"""A worker's scratch directory: its own for as long as it lives, cleared by the next worker after its death."""

import contextlib
import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

LOCK = ".lock"


@contextlib.contextmanager
def scratch_directory(root: Path, name: str) -> Iterator[Path]:
    """A new directory below root, removed at the end; what dead workers left there goes at once. Raises OSError."""
    root.mkdir(parents=True, exist_ok=True)
    folder = root / name
    folder.mkdir()
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _clear_dead(root, folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _clear_dead(root: Path, own: Path) -> None:
    for entry in root.iterdir():
        if entry == own or not (entry / LOCK).is_file():
            continue
        with contextlib.suppress(OSError):
            lock = os.open(entry / LOCK, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(entry, ignore_errors=True)
                logger.info("removed %s, left by a worker that died", entry)
            finally:
                os.close(lock)
