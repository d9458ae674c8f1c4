"""File operations that cannot leave a root directory: every step opens one name relative to a directory's descriptor.

Links are never followed below the root, so neither a key nor somebody who plants a link can lead outside.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_STEP = _DIRECTORY | os.O_NOFOLLOW


@contextmanager
def opened(descriptor: int) -> Iterator[int]:
    """Closes a descriptor at the end."""
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_folder(root: Path, parts: list[str], create: bool = False) -> int:
    """Descriptor of the folder root/parts[0]/parts[1]/..., made durably where create says so and it is missing."""
    if create:
        root.mkdir(parents=True, exist_ok=True)
    current = os.open(root, _DIRECTORY)
    for part in parts:
        try:
            following = step(current, part, create)
        finally:
            os.close(current)
        current = following
    return current


def step(folder: int, name: str, create: bool = False) -> int:
    """Descriptor of one folder in an open one."""
    try:
        return os.open(name, _STEP, dir_fd=folder)
    except FileNotFoundError:
        if not create:
            raise
    try:
        os.mkdir(name, dir_fd=folder)
        os.fsync(folder)
    except FileExistsError:
        pass
    return os.open(name, _STEP, dir_fd=folder)


def open_regular(folder: int, name: str) -> int:
    """Descriptor for reading a plain file. FileNotFoundError for anything else of that name."""
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(name)
    return descriptor


def stat_regular(folder: int, name: str) -> os.stat_result:
    """What the file system says of a plain file. FileNotFoundError for anything else of that name."""
    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if not stat.S_ISREG(status.st_mode):
        raise FileNotFoundError(name)
    return status


def remove_empty(root: Path, parts: list[str]) -> None:
    """Removes the folder root/parts and its parents below root for as long as they are empty."""
    for depth in range(len(parts), 0, -1):
        try:
            with opened(open_folder(root, parts[: depth - 1])) as folder:
                os.rmdir(parts[depth - 1], dir_fd=folder)
        except OSError:
            return
