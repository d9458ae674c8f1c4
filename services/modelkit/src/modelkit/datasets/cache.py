"""A directory of things that were worked out from data: written aside, named when whole, the oldest removed first."""

import contextlib
import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from modelkit.disk import sync_all

INCOMING = ".incoming"
LOCKS = ".locks"
IN_USE_SECONDS = 600.0
LOCK_SECONDS = 24 * 3600.0
ABANDONED_SECONDS = 60.0  # a writer has its lock long before


@dataclass(frozen=True, slots=True)
class DataCache:
    """Entries are directories named after what they are made from. Several processes may share one.

    limit_bytes bounds what stays: when an entry is added, those that were used longest ago go, except what was used
    in the last minutes and what is held. An open or mapped file of an entry that goes can still be read.
    """

    root: Path
    limit_bytes: int = 20 << 30

    def find(self, name: str) -> Path | None:
        """The entry of a name, which now counts as used."""
        entry = self.root / name
        try:
            os.utime(entry)
        except OSError:
            return None
        return entry

    def get(self, name: str, fill: Callable[[Path], None]) -> Path:
        """The entry of a name, which fill makes in an empty directory when it is not there.

        Others that ask for it meanwhile wait. Raises OSError, and whatever fill raises; then nothing is left.
        """
        if entry := self.find(name):
            return entry
        with self.lock(name):
            if entry := self.find(name):
                return entry
            with self.incoming() as folder:
                fill(folder)
                return self.add(name, folder)

    @contextlib.contextmanager
    def holding(self, *paths: Path) -> Iterator[None]:
        """Within it the entries that paths lie in stay, for every process; paths outside the cache do not matter.

        Raises FileNotFoundError when an entry has gone already: make it again.
        """
        root = self.root.absolute()
        names = {path.absolute().relative_to(root).parts[0] for path in paths if path.absolute().is_relative_to(root)}
        with contextlib.ExitStack() as held:
            for name in sorted(names):
                descriptor = _open_folder(self.root / name)
                held.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                if not os.path.samestat(os.fstat(descriptor), (self.root / name).stat()):
                    raise FileNotFoundError(f"{name} was made anew meanwhile")
            yield

    @contextlib.contextmanager
    def incoming(self) -> Iterator[Path]:
        """An empty directory in which an entry can be made; what was not added is removed."""
        folder = self.root / INCOMING / uuid.uuid4().hex
        folder.mkdir(parents=True)
        lock = _open_folder(folder)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # says that its writer lives
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)

    def add(self, name: str, folder: Path) -> Path:
        """Makes a directory from incoming() the entry of a name, unless there is one. Raises OSError."""
        sync_all(folder)
        entry = self.root / name
        try:
            folder.rename(entry)
        except OSError:
            if not entry.is_dir():
                raise
        os.utime(entry)
        self.trim()
        return entry

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Held by one process and thread at a time."""
        folder = self.root / LOCKS
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def trim(self) -> None:
        """Removes entries until what is left is within the limit, and what crashed writers left."""
        now = time.time()
        for folder in _children(self.root / INCOMING):
            _remove_abandoned(folder, now)
        self._remove_locks(now)
        entries = sorted((entry.stat().st_mtime, entry) for entry in _children(self.root))
        sizes = {entry: _size(entry) for _, entry in entries}
        total = sum(sizes.values())
        for used, entry in entries:
            if total <= self.limit_bytes or now - used < IN_USE_SECONDS:
                return
            with self.incoming() as trash, contextlib.suppress(OSError):
                _take_away(entry, trash)
                total -= sizes[entry]

    def _remove_locks(self, now: float) -> None:
        for lock in (self.root / LOCKS).glob("*"):
            with contextlib.suppress(OSError):
                if now - lock.stat().st_mtime > LOCK_SECONDS and not (self.root / lock.name).exists():
                    lock.unlink()


def _children(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [Path(entry) for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")]


def _open_folder(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _take_away(entry: Path, trash: Path) -> None:
    """Raises OSError when somebody holds the entry."""
    lock = _open_folder(entry)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        entry.rename(trash / entry.name)
    finally:
        os.close(lock)


def _remove_abandoned(folder: Path, now: float) -> None:
    with contextlib.suppress(OSError):
        if now - folder.stat().st_mtime < ABANDONED_SECONDS:
            return
        lock = _open_folder(folder)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


def _size(folder: Path) -> int:
    files = (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
    return sum(file.lstat().st_size for file in files)
