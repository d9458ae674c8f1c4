"""What is written, brought to disk: a crash of the machine leaves no less than a file's name promises."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

MANY_FILES = 100
FLUSH_SECONDS = 0.05


def sync(path: Path) -> None:
    """Brings a file, or the entries of a directory, to disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_all(folder: Path) -> None:
    """Brings everything in a directory to disk. Raises OSError."""
    paths = [Path(parent, name) for parent, _, names in os.walk(folder) for name in (*names, ".")]
    if len(paths) > MANY_FILES:
        os.sync()
        return
    for path in paths:
        sync(path)


@contextmanager
def flushing(descriptor: int) -> Iterator[None]:
    """Within it the disk takes what is written to a file while more is written, so that little is left for a sync.

    Raises OSError at the end when the disk failed, which a sync that follows might not be told.
    """
    over = Event()
    failures: list[OSError] = []

    def flush() -> None:
        while not over.wait(FLUSH_SECONDS):
            try:
                os.fdatasync(descriptor)
            except OSError as error:
                failures.append(error)
                return

    thread = Thread(target=flush, name="flush", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if failures:
        raise failures[0]
