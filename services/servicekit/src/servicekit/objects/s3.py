"""Objects on an S3 server, through the minio client in a bounded number of threads."""

import asyncio
import logging
import random
import uuid
from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import urllib3
from minio.datatypes import Object
from minio.deleteobjects import DeleteObject
from urllib3.exceptions import HTTPError

from servicekit import errors
from servicekit.objects.copying import finish, temporary_beside
from servicekit.objects.s3_address import S3Address
from servicekit.objects.s3_client import BACKOFF_SECONDS, S3_ERRORS, S3Client, broke_off, code_of, translate
from servicekit.objects.s3_parts import LocalFile, download_slice, slices, upload_slice
from servicekit.objects.store import (
    CHUNK_BYTES,
    ObjectInfo,
    check_expiry,
    check_folder,
    check_key,
    check_prefix,
    check_range,
)
from servicekit.objects.threads import Threads, all_or_none

logger = logging.getLogger(__name__)

T = TypeVar("T")

DELETE_BATCH = 1000
DELETE_PASSES = 100
NOT_SUPPORTED = ("NotImplemented", "MethodNotAllowed")


class S3ObjectStore:
    """Large files travel in parts, in parallel in both directions; a read that breaks off goes on where it was.

    put_bytes(if_absent=True) is a conditional write where the server honours If-None-Match, which is found out with a
    probe object. Where it does not, the store looks first and writes then: of two processes that write at the same
    moment both may believe that they were first. Listing comes in the server's order.
    """

    def __init__(self, address: S3Address) -> None:
        self._address = address
        self._client = S3Client(address)
        self._threads = Threads(address.threads, "objects")
        self._conditional: bool | None = None
        self._one_writer = asyncio.Lock()

    def __repr__(self) -> str:
        return f"S3ObjectStore({str(self._address)!r})"

    async def prepare(self) -> None:
        """Makes sure that the bucket exists; with create_bucket=true it is made. FailedPrecondition without it."""
        bucket = self._address.bucket
        if await self._call(bucket, self._client.bucket_exists, bucket):
            return
        if not self._address.create_bucket:
            raise errors.FailedPrecondition(f"{self._address} does not exist", reason="NO_BUCKET")
        try:
            await self._threads.run(self._client.make_bucket, bucket)
        except S3_ERRORS as error:
            if code_of(error) not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                raise translate(error, bucket) from error

    async def put_file(self, key: str, path: Path) -> None:
        """Uploads a file; a large one in parts, which appear as one object at the end. FailedPrecondition when the
        file changes meanwhile."""
        name = self._name(key)
        file = await self._threads.run(LocalFile.of, path)
        pieces = slices(file.size, self._address.part_bytes)
        if len(pieces) <= 1:
            data = await self._threads.run(file.read, 0, file.size)
            await self._repeat(key, self._client.put, name, data)
            return
        upload = await self._repeat(key, self._client.begin_parts, name)
        try:
            jobs = [self._repeat(key, upload_slice, self._client, name, upload, file, piece) for piece in pieces]
            parts = await all_or_none(jobs)
            await self._call(key, self._client.finish_parts, name, upload, parts)
        except BaseException:
            await asyncio.shield(self._drop(name, upload))
            raise

    async def put_bytes(self, key: str, data: bytes, if_absent: bool = False) -> None:
        """Stores data in one request. An Unavailable conditional write may or may not have happened."""
        name = self._name(key)
        if not if_absent:
            await self._repeat(key, self._client.put, name, data)
        elif await self.conditional_writes():
            await self._call(key, self._client.put, name, data, True)
        else:
            async with self._one_writer:
                if await self.stat(key):
                    raise errors.AlreadyExists(f"object {key} exists already")
                await self._repeat(key, self._client.put, name, data)

    async def conditional_writes(self) -> bool:
        """Whether the server honours If-None-Match, tried once with an object that is removed again."""
        async with self._one_writer:
            if self._conditional is None:
                name = f"{self._address.prefix}.probe/{uuid.uuid4().hex}"
                await self._call(name, self._client.put, name, b"probe")
                try:
                    self._conditional = await self._refuses_second(name)
                finally:
                    await self._call(name, self._client.remove_object, self._address.bucket, name)
            return self._conditional

    async def _refuses_second(self, name: str) -> bool:
        try:
            await self._threads.run(self._client.put, name, b"probe", True)
        except S3_ERRORS as error:
            if code_of(error) == "PreconditionFailed":
                return True
            if code_of(error) not in NOT_SUPPORTED:
                raise translate(error, name) from error
        logger.warning("%s ignores If-None-Match; writes that must not replace anything look first", self._address)
        return False

    async def get_file(self, key: str, path: Path) -> None:
        """Downloads an object; a large one in parts."""
        head = await self._head(key)
        temporary = await self._threads.run(temporary_beside, path)
        try:
            pieces = slices(head.size or 0, self._address.part_bytes)
            name, etag = self._name(key), head.etag or ""
            jobs = [self._repeat(key, download_slice, self._client, name, etag, temporary, piece) for piece in pieces]
            await all_or_none(jobs)
            await self._threads.run(finish, temporary, path)
        finally:
            await asyncio.shield(self._threads.run(temporary.unlink, True))

    async def get_bytes(self, key: str) -> bytes:
        """The whole object."""
        return b"".join([chunk async for chunk in self.read(key)])

    async def read(self, key: str, start: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        """Streams a range in chunks of at most 1 MiB. Aborted when the object is replaced meanwhile."""
        check_range(start, length)
        left, etag, failures = length, None, 0
        if length == 0:
            await self._head(key)
        while left != 0:
            response = None
            try:
                response = await self._open(key, start, left, etag)
                if response is None:
                    return
                etag = response.headers.get("etag", "").strip('"') or None
                async for chunk in self._chunks(response):
                    start, left = start + len(chunk), None if left is None else left - len(chunk)
                    yield chunk
                return
            except HTTPError as error:
                failures += 1
                if failures > self._address.retries:
                    raise translate(error, key) from error
                await _back_off(failures)
            finally:
                if response is not None:
                    await asyncio.shield(self._threads.run(response.close))

    async def _chunks(self, response: urllib3.BaseHTTPResponse) -> AsyncGenerator[bytes, None]:
        while chunk := await self._threads.run(response.read, CHUNK_BYTES):
            yield chunk

    async def _open(
        self, key: str, start: int, length: int | None, etag: str | None
    ) -> urllib3.BaseHTTPResponse | None:
        """The answer to a ranged read, None when the object has nothing there. HTTPError when it may be tried again."""
        try:
            return await self._threads.run(self._client.get, self._name(key), start, length, etag)
        except S3_ERRORS as error:
            if code_of(error) == "InvalidRange":
                return None
            if broke_off(error):
                raise
            raise _changed(error, key) from error

    async def stat(self, key: str) -> ObjectInfo | None:
        """Size and time of an object."""
        try:
            return _info(key, await self._head(key))
        except errors.NotFound:
            return None

    async def _head(self, key: str) -> Object:
        return await self._repeat(key, self._client.head, self._name(key))

    async def list(self, prefix: str = "") -> AsyncGenerator[ObjectInfo, None]:
        """Objects whose key begins with prefix, in the server's order."""
        begin = len(self._address.prefix)
        async for item in self._threads.iterate(self._walk(check_prefix(prefix))):
            name = item.object_name or ""
            if not name.endswith("/"):
                yield _info(name[begin:], item)

    def _walk(self, prefix: str) -> Generator[Object, None, None]:
        """Objects below a prefix and, from servers that have them, empty folders, whose names end in a slash."""
        try:
            yield from self._client.list_objects(
                self._address.bucket, prefix=self._address.prefix + prefix, recursive=True
            )
        except S3_ERRORS as error:
            raise translate(error, prefix) from error

    async def delete(self, key: str) -> None:
        """Removes an object."""
        await self._call(key, self._client.remove_object, self._address.bucket, self._name(key))

    async def delete_prefix(self, prefix: str) -> None:
        """Removes every object under a prefix, a thousand with each request, and the empty folders of servers that
        show them. Unavailable when objects keep appearing."""
        check_folder(prefix)
        for _ in range(DELETE_PASSES):
            items = self._threads.iterate(self._walk(prefix))
            names = [name async for item in items if (name := item.object_name)]
            if not names:
                return
            objects = [name for name in names if not name.endswith("/")]
            for first in range(0, len(objects), DELETE_BATCH):
                await self._repeat(prefix, self._remove, objects[first : first + DELETE_BATCH])
            # Folders are not removed in bulk by the servers that show them.
            for name in names:
                if name.endswith("/"):
                    await self._call(prefix, self._client.remove_object, self._address.bucket, name)
        raise errors.Unavailable(f"objects keep appearing under {prefix} while it is removed")

    def _remove(self, names: Iterable[str]) -> None:
        objects = [DeleteObject(name) for name in names]
        for error in self._client.remove_objects(self._address.bucket, objects):
            if error.code == "AccessDenied":
                raise errors.PermissionDenied(f"the object store refuses to remove {error.name}")
            if error.code not in ("NoSuchKey", "NoSuchVersion"):
                raise errors.Unavailable(f"the object store could not remove {error.name}: {error.message}")

    async def presigned_get(self, key: str, expires: timedelta) -> str:
        """An address to read the object from, for 1 second to 7 days."""
        return self._client.presigned_get_object(self._address.bucket, self._name(key), check_expiry(expires))

    async def presigned_put(self, key: str, expires: timedelta) -> str:
        """An address to write the object to, for 1 second to 7 days."""
        return self._client.presigned_put_object(self._address.bucket, self._name(key), check_expiry(expires))

    async def close(self) -> None:
        """Ends the threads and closes the connections."""
        await self._threads.close()
        self._client.close()

    def _name(self, key: str) -> str:
        return self._address.prefix + check_key(key)

    async def _call(self, what: str, function: Callable[..., T], *arguments: object) -> T:
        try:
            return await self._threads.run(function, *arguments)
        except S3_ERRORS as error:
            raise translate(error, what) from error

    async def _repeat(self, what: str, function: Callable[..., T], *arguments: object) -> T:
        """Calls a function that may run twice, again when an answer breaks off."""
        for failures in range(1, self._address.retries + 1):
            try:
                return await self._threads.run(function, *arguments)
            except S3_ERRORS as error:
                if not broke_off(error):
                    raise _changed(error, what) from error
            await _back_off(failures)
        return await self._call(what, function, *arguments)

    async def _drop(self, name: str, upload: str) -> None:
        try:
            await self._threads.run(self._client.drop_parts, name, upload)
        except S3_ERRORS as error:
            logger.warning("parts of %s stay on the server: %s", name, translate(error, name))


def _info(key: str, item: Object) -> ObjectInfo:
    return ObjectInfo(key, item.size or 0, item.last_modified or datetime.fromtimestamp(0, UTC))


def _changed(error: Exception, key: str) -> errors.TunesmithError:
    if code_of(error) == "PreconditionFailed":
        return errors.Aborted(f"object {key} was replaced while it was read", reason="OBJECT_CHANGED")
    return translate(error, key)


async def _back_off(failures: int) -> None:
    await asyncio.sleep(BACKOFF_SECONDS * 2**failures * random.uniform(0.5, 1.0))
