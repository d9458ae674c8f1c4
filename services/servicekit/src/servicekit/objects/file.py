"""Objects as files beneath one directory, for a single machine or a shared file system."""

import errno
import os
import stat
import threading
from collections.abc import AsyncGenerator
from datetime import timedelta
from pathlib import Path

from servicekit import errors
from servicekit.objects.beneath import opened
from servicekit.objects.copying import copy_all, finish, temporary_beside, write_all
from servicekit.objects.directory import Directory, translate
from servicekit.objects.store import CHUNK_BYTES, ObjectInfo, check_folder, check_prefix, check_range
from servicekit.objects.threads import Threads


class FileObjectStore:
    """Writes go to a temporary file that is synced and renamed, so an object is whole or absent, also after a crash.

    Listing is in key order. There are no presigned addresses.
    """

    def __init__(self, root: Path, workers: int = 4) -> None:
        self._directory = Directory(root)
        self._threads = Threads(workers, "objects")

    def __repr__(self) -> str:
        return f"FileObjectStore({str(self._directory.root)!r})"

    async def prepare(self) -> None:
        """Creates the root, proves that it can be written, and clears what crashed writers left a day ago."""
        await self._threads.run(self._directory.prepare)

    async def put_file(self, key: str, path: Path) -> None:
        """Stores a copy of a local file."""
        await self._threads.run_stoppable(self._put_file, key, path)

    async def put_bytes(self, key: str, data: bytes, if_absent: bool = False) -> None:
        """Stores data; with if_absent exactly one of several writers succeeds."""

        def fill(descriptor: int) -> None:
            write_all(descriptor, data)

        await self._threads.run(self._directory.put, key, fill, if_absent)

    async def get_file(self, key: str, path: Path) -> None:
        """Copies an object to a local file."""
        await self._threads.run_stoppable(self._get_file, key, path)

    async def get_bytes(self, key: str) -> bytes:
        """The whole object."""
        return await self._threads.run(self._directory.read_all, key)

    async def read(self, key: str, start: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        """Streams a range in chunks of at most 1 MiB."""
        check_range(start, length)
        with opened(await self._threads.run(self._directory.open, key)) as descriptor:
            end = None if length is None else start + length
            while end is None or start < end:
                wanted = CHUNK_BYTES if end is None else min(CHUNK_BYTES, end - start)
                try:
                    chunk = await self._threads.run(os.pread, descriptor, wanted, start)
                except OSError as error:
                    raise translate(error, key) from error
                if not chunk:
                    return
                start += len(chunk)
                yield chunk

    async def stat(self, key: str) -> ObjectInfo | None:
        """Size and time of an object."""
        return await self._threads.run(self._directory.stat, key)

    async def list(self, prefix: str = "") -> AsyncGenerator[ObjectInfo, None]:
        """Objects whose key begins with prefix, in key order."""
        async for info in self._threads.iterate(self._directory.walk(check_prefix(prefix))):
            yield info

    async def delete(self, key: str) -> None:
        """Removes an object and the folders that it leaves empty."""
        await self._threads.run(self._directory.delete, key)

    async def delete_prefix(self, prefix: str) -> None:
        """Removes a folder: it disappears at once, its content is freed after that."""
        await self._threads.run(self._directory.delete_folder, check_folder(prefix)[:-1])

    async def presigned_get(self, key: str, expires: timedelta) -> str:
        """Unimplemented: a directory has no address."""
        raise errors.Unimplemented(f"{self!r} has no presigned addresses; read the object through a service")

    async def presigned_put(self, key: str, expires: timedelta) -> str:
        """Unimplemented: a directory has no address."""
        raise errors.Unimplemented(f"{self!r} has no presigned addresses; write the object through a service")

    async def close(self) -> None:
        """Ends the threads."""
        await self._threads.close()

    def _put_file(self, key: str, path: Path, stop: threading.Event) -> None:
        with opened(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)) as source:
            if not stat.S_ISREG(os.fstat(source).st_mode):
                raise OSError(errno.EINVAL, "not a plain file", str(path))
            self._directory.put(key, lambda target: copy_all(source, target, stop))

    def _get_file(self, key: str, path: Path, stop: threading.Event) -> None:
        with opened(self._directory.open(key)) as source:
            temporary = temporary_beside(path)
            try:
                with opened(os.open(temporary, os.O_WRONLY | os.O_CLOEXEC)) as target:
                    copy_all(source, target, stop)
                finish(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
