"""Moving bytes between local files."""

import errno
import os
import threading
import uuid
from pathlib import Path

COPY_BYTES = 8 * 1024 * 1024
_NO_KERNEL_COPY = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM)


class Stopped(Exception):
    """The caller no longer wants the copy."""


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Writes every byte."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def copy_all(source: int, target: int, stop: threading.Event) -> None:
    """Copies from descriptor to descriptor, inside the kernel where it can. Stopped when stop is set on the way."""
    try:
        while _going_on(stop) and os.copy_file_range(source, target, COPY_BYTES):
            pass
    except OSError as error:
        if error.errno not in _NO_KERNEL_COPY:
            raise
        while _going_on(stop) and (chunk := os.read(source, COPY_BYTES)):
            write_all(target, chunk)


def _going_on(stop: threading.Event) -> bool:
    if stop.is_set():
        raise Stopped
    return True


def temporary_beside(path: Path) -> Path:
    """Creates an empty file that finish() can put in the place of path; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:50]}.{uuid.uuid4().hex}")
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
    return temporary


def finish(temporary: Path, path: Path) -> None:
    """Puts a whole file in its place."""
    descriptor = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.rename(path)
