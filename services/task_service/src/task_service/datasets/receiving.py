"""Takes an upload's stream into a temporary file, hashing it on the way."""

import asyncio
import errno
import hashlib
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from servicekit.errors import InvalidArgument, Problem, ResourceExhausted
from tunesmith.task.v1 import dataset_service_pb2 as pb

RESERVE_BYTES = 256 * 1024 * 1024
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

Requests = AsyncIterator[pb.UploadDatasetRequest]


@dataclass(frozen=True, slots=True)
class Received:
    """A whole file that came in; size in bytes."""

    header: pb.DatasetHeader
    path: Path
    size: int
    sha256: str


@asynccontextmanager
async def receive(requests: Requests, max_bytes: int) -> AsyncIterator[Received]:
    """The file of a stream, which is gone when the block ends.

    Raises InvalidArgument for a stream without header or data or with another hash than announced, ResourceExhausted
    for more than max_bytes and when the disk of the temporary directory is full.
    """
    header = await _header(requests)
    with tempfile.TemporaryDirectory(prefix="tunesmith-upload-") as folder:
        path = Path(folder) / "data"
        digest = hashlib.sha256()
        size = 0
        with path.open("xb", buffering=0) as file:
            async for request in requests:
                if request.HasField("header"):
                    raise _refused("header", "is the first message alone; the others carry data")
                size += len(request.data)
                if size > max_bytes:
                    message = f"the file has more than {max_bytes} bytes, the most that may be uploaded"
                    raise ResourceExhausted(message, reason="DATASET_TOO_LARGE", metadata={"limit": str(max_bytes)})
                digest.update(request.data)
                await asyncio.to_thread(_append, file, request.data, folder)
        sha256 = digest.hexdigest()
        if not size:
            raise _refused("data", "the file is empty")
        if header.sha256 and header.sha256 != sha256:
            raise _refused("header.sha256", f"the file has {sha256}: it was changed on the way, upload it again")
        yield Received(header, path, size, sha256)


async def _header(requests: Requests) -> pb.DatasetHeader:
    async for request in requests:
        if request.HasField("header"):
            return request.header
        break
    raise _refused("header", "must come first: it names the file")


def _append(file: IO[bytes], data: bytes, folder: str) -> None:
    try:
        if shutil.disk_usage(folder).free < RESERVE_BYTES + len(data):
            raise OSError(errno.ENOSPC, "too little space is left")
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]
    except OSError as error:
        if error.errno not in FULL:
            raise
        message = "the task service's temporary directory has no space for this upload; try again later"
        raise ResourceExhausted(message, reason="DISK_FULL") from error


def _refused(field: str, message: str) -> InvalidArgument:
    return InvalidArgument(problems=[Problem(field, message)], reason="DATASET_UNREADABLE")
