"""One platform per data directory: a lock that the kernel drops when its holder dies."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tunesmith_local.errors import CannotStart


@contextmanager
def held(path: Path, holder: str) -> Iterator[None]:
    """Holds the lock for the block. Raises CannotStart that names the holder when another process has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = os.pread(descriptor, 1000, 0).decode(errors="replace").strip() or "another process"
            folder = path.parent.parent
            raise CannotStart(f"the data directory {folder} is in use by {other}; stop that, or name another") from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, holder.encode(), 0)
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)
