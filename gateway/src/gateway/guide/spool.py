"""Where the files of forms lie while a request is served: nameless, bounded in number, with disk space left over."""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from gateway.settings import GatewaySettings
from servicekit.spooling import Places, append, require_space

PREFIX = "form-"
ABANDONED_SECONDS = 3600.0


class Spool:
    """Files without a name, which the system removes however the gateway ends."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._own = settings.upload_dir
        self._directory = settings.upload_dir or Path(tempfile.gettempdir())
        self._places = Places(settings.uploads_at_once, settings.uploads_per_user)

    def prepare(self) -> None:
        """Makes the directory and clears what a killed gateway left. Blocks. Raises OSError.

        Where files cannot be made without a name they have one for a moment, and a kill may leave it.
        """
        if self._own is None:
            return
        self._own.mkdir(parents=True, exist_ok=True)
        oldest = time.time() - ABANDONED_SECONDS
        for path in self._own.glob(f"{PREFIX}*"):
            with contextlib.suppress(FileNotFoundError):  # another gateway's, or cleared by one
                if path.stat().st_mtime < oldest:
                    path.unlink()

    @contextlib.contextmanager
    def place(self, user: str) -> Iterator[None]:
        """A place for one form while the block runs. Raises ResourceExhausted."""
        with self._places.place(user):
            yield

    def require_space(self, size: int) -> None:
        """Raises ResourceExhausted when so many bytes do not fit. Blocks."""
        require_space(self._directory, size)

    def open(self) -> IO[bytes]:
        """A new file, gone when it is closed. Blocks. Raises OSError."""
        return tempfile.TemporaryFile(buffering=0, prefix=PREFIX, dir=self._directory)

    def append(self, file: IO[bytes], data: bytes) -> None:
        """Writes to a file of open. Blocks. Raises ResourceExhausted."""
        append(file, data, self._directory)
