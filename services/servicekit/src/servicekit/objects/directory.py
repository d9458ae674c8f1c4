"""A directory of objects, blocking: what FileObjectStore does in its threads."""

import errno
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from servicekit import errors
from servicekit.objects import beneath
from servicekit.objects.store import ObjectInfo, check_key, is_key

INCOMING = ".incoming"
ABANDONED_SECONDS = 24 * 3600
PLACE_ATTEMPTS = 20
_ABSENT = (FileNotFoundError, NotADirectoryError)


class Directory:
    """Objects as plain files below a root; files being written and folders being removed live in .incoming."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root))

    def prepare(self) -> None:
        """Creates the root, proves that it can be written, and clears what crashed writers left a day ago."""
        with _mapped(str(self.root)), self._incoming() as incoming:
            with os.scandir(incoming) as entries:
                oldest = time.time() - ABANDONED_SECONDS
                for entry in entries:
                    if entry.stat(follow_symlinks=False).st_mtime < oldest:
                        _remove(incoming, entry.name)
            with _temporary(incoming) as (descriptor, _):
                os.fsync(descriptor)

    def put(self, key: str, fill: Callable[[int], None], if_absent: bool = False) -> None:
        """Writes what fill puts into a descriptor. With if_absent AlreadyExists when the key is taken."""
        parts = _parts(key)
        with _mapped(key), self._incoming() as incoming:
            if if_absent and self.stat(key):
                raise errors.AlreadyExists(f"object {key} exists already")
            with _temporary(incoming) as (descriptor, name):
                fill(descriptor)
                os.fsync(descriptor)
                self._place(incoming, name, parts, if_absent)

    def open(self, key: str) -> int:
        """Descriptor for reading an object. NotFound without it."""
        parts = _parts(key)
        with _mapped(key):
            try:
                with self._folder(parts[:-1]) as folder:
                    return beneath.open_regular(folder, parts[-1])
            except OSError as error:
                if isinstance(error, _ABSENT) or error.errno == errno.ELOOP:
                    raise errors.NotFound(f"there is no object {key}", reason="NO_OBJECT") from error
                raise

    def read_all(self, key: str) -> bytes:
        """The whole object. NotFound without it."""
        with os.fdopen(self.open(key), "rb") as file, _mapped(key):
            return file.read()

    def stat(self, key: str) -> ObjectInfo | None:
        """What is known of an object, None without it."""
        parts = _parts(key)
        with _mapped(key):
            try:
                with self._folder(parts[:-1]) as folder:
                    return _info(key, beneath.stat_regular(folder, parts[-1]))
            except _ABSENT:
                return None

    def walk(self, prefix: str) -> Generator[ObjectInfo, None, None]:
        """Objects whose key begins with prefix, in key order."""
        above, slash, beginning = prefix.rpartition("/")
        with _mapped(prefix):
            try:
                folder = beneath.open_folder(self.root, above.split("/") if slash else [])
            except _ABSENT:
                return
            for info in _walk(folder, above + slash, beginning):
                if not info.key.startswith(INCOMING + "/"):
                    yield info

    def delete(self, key: str) -> None:
        """Removes an object and the folders that it leaves empty."""
        parts = _parts(key)
        with _mapped(key):
            try:
                with self._folder(parts[:-1]) as folder:
                    beneath.stat_regular(folder, parts[-1])
                    os.unlink(parts[-1], dir_fd=folder)
                    os.fsync(folder)
            except _ABSENT:
                return
        beneath.remove_empty(self.root, parts[:-1])

    def delete_folder(self, name: str) -> None:
        """Moves a folder out of sight in one step, then frees what it holds."""
        parts = _parts(name)
        with _mapped(name), self._incoming() as trash:
            removed = uuid.uuid4().hex
            try:
                with self._folder(parts[:-1]) as folder, self._folder(parts):
                    os.rename(parts[-1], removed, src_dir_fd=folder, dst_dir_fd=trash)
                    os.fsync(folder)
            except _ABSENT:
                return
            _remove(trash, removed)
        beneath.remove_empty(self.root, parts[:-1])

    @contextmanager
    def _folder(self, parts: list[str], create: bool = False) -> Iterator[int]:
        with beneath.opened(beneath.open_folder(self.root, parts, create)) as folder:
            yield folder

    @contextmanager
    def _incoming(self) -> Iterator[int]:
        with self._folder([INCOMING], create=True) as folder:
            yield folder

    def _place(self, incoming: int, name: str, parts: list[str], if_absent: bool) -> None:
        """Moves a temporary file to its key. Its folder may be pruned meanwhile by a delete, so it tries again."""
        for attempt in range(PLACE_ATTEMPTS):
            try:
                with self._folder(parts[:-1], create=True) as folder:
                    if if_absent:
                        os.link(name, parts[-1], src_dir_fd=incoming, dst_dir_fd=folder, follow_symlinks=False)
                    else:
                        os.rename(name, parts[-1], src_dir_fd=incoming, dst_dir_fd=folder)
                    os.fsync(folder)
                return
            except FileExistsError as error:
                raise errors.AlreadyExists(f"object {'/'.join(parts)} exists already") from error
            except FileNotFoundError:
                if attempt == PLACE_ATTEMPTS - 1:
                    raise


def _parts(key: str) -> list[str]:
    parts = check_key(key).split("/")
    if parts[0] == INCOMING:
        message = f"begins with {INCOMING}, which holds files being written"
        raise errors.InvalidArgument(problems=[errors.Problem("key", message)], reason="BAD_OBJECT_KEY")
    return parts


@contextmanager
def _mapped(what: str) -> Iterator[None]:
    """Turns what the file system says about the store into an error that callers know."""
    try:
        yield
    except OSError as error:
        raise translate(error, what) from error


def translate(error: OSError, what: str) -> errors.TunesmithError:
    """The error that callers know for one of the file system."""
    number, text = error.errno, f"{what}: {error.strerror or error}"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return errors.PermissionDenied(f"the object store refuses {text}")
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return errors.ResourceExhausted(f"the object store is full: {text}", reason="OBJECT_STORE_FULL")
    if number in (errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EEXIST, errno.ENOTEMPTY):
        return errors.FailedPrecondition(f"a part of the key is taken by another object or a link: {text}")
    return errors.Unavailable(f"the object store failed: {text}")


@contextmanager
def _temporary(incoming: int) -> Iterator[tuple[int, str]]:
    name = uuid.uuid4().hex
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        with beneath.opened(os.open(name, flags, 0o644, dir_fd=incoming)) as descriptor:
            yield descriptor, name
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=incoming)


def _info(key: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC))


def _remove(folder: int, name: str) -> None:
    try:
        if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            shutil.rmtree(name, dir_fd=folder)
        else:
            os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        pass


def _walk(folder: int, base: str, beginning: str) -> Generator[ObjectInfo, None, None]:
    """Plain files below an open folder, which it closes; base ends in a slash or is empty."""
    with beneath.opened(folder):
        with os.scandir(folder) as entries:
            found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        # A folder sorts as its name and a slash, which makes the whole walk come in the order of the keys.
        for name, is_folder in sorted(found, key=lambda item: item[0] + "/" * item[1]):
            if not name.startswith(beginning) or not is_key(name):
                continue
            try:
                if is_folder:
                    below = beneath.step(folder, name)
                else:
                    info = _info(base + name, beneath.stat_regular(folder, name))
            except _ABSENT:
                continue
            if is_folder:
                yield from _walk(below, f"{base}{name}/", "")
            else:
                yield info
