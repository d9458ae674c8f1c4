"""Files of callers on their way through a service: how many at once, and how much of its disk stays free."""

import errno
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from servicekit.errors import ResourceExhausted

RESERVE_BYTES = 256 * 1024 * 1024
TOO_MANY_UPLOADS = "TOO_MANY_UPLOADS"
DISK_FULL = "DISK_FULL"
DATASET_TOO_LARGE = "DATASET_TOO_LARGE"
STORAGE_EXHAUSTED = "STORAGE_EXHAUSTED"

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class Places:
    """Uploads that a process takes at once: total of them, per_user of each user."""

    def __init__(self, total: int, per_user: int) -> None:
        self._total = total
        self._per_user = per_user
        self._taken: Counter[str] = Counter()

    @contextmanager
    def place(self, user: str) -> Iterator[None]:
        """A place while the block runs. Raises ResourceExhausted when none is free."""
        if self._taken[user] >= self._per_user:
            raise _too_many(f"{self._per_user} of your uploads are running, the most for one user")
        if self._taken.total() >= self._total:
            raise _too_many(f"{self._total} uploads are running, the most at once")
        self._taken[user] += 1
        try:
            yield
        finally:
            self._taken[user] -= 1
            if not self._taken[user]:
                del self._taken[user]


def require_space(directory: Path | str, size: int) -> None:
    """Raises ResourceExhausted when size more bytes would leave less than the reserve. Blocks."""
    if shutil.disk_usage(directory).free < RESERVE_BYTES + size:
        raise _no_space()


def append(file: IO[bytes], data: bytes, directory: Path | str) -> None:
    """Writes all of data to an unbuffered file below directory. Blocks. Raises ResourceExhausted, OSError."""
    require_space(directory, len(data))
    try:
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise _no_space() from error


def _no_space() -> ResourceExhausted:
    return ResourceExhausted("there is too little disk space for this upload; try again later", reason=DISK_FULL)


def _too_many(which: str) -> ResourceExhausted:
    return ResourceExhausted(f"{which}; try again when one has ended", reason=TOO_MANY_UPLOADS)
