"""Takes an upload's stream into a temporary file, hashing it on the way."""

import asyncio
import hashlib
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from servicekit.errors import InvalidArgument, Problem, ResourceExhausted
from servicekit.spooling import DATASET_TOO_LARGE, Places, append
from tunesmith.task.v1 import dataset_service_pb2 as pb

PREFIX = "upload-"
ABANDONED_SECONDS = 24 * 3600.0

Requests = AsyncIterator[pb.UploadDatasetRequest]


@dataclass(frozen=True, slots=True)
class Received:
    """A whole file that came in; size in bytes."""

    header: pb.DatasetHeader
    path: Path
    size: int
    sha256: str


class Inbox:
    """The directory that uploads pass through, without one the system's temporary one; at most max_bytes each."""

    def __init__(self, directory: Path | None, max_bytes: int, places: Places) -> None:
        self.directory = directory
        self.max_bytes = max_bytes
        self.places = places

    def prepare(self) -> None:
        """Makes the directory and clears what a killed process left a day ago. Blocks. Raises OSError."""
        if self.directory is None:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        oldest = time.time() - ABANDONED_SECONDS
        for folder in self.directory.glob(f"{PREFIX}*"):
            if folder.stat().st_mtime < oldest:
                shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def receive(requests: Requests, inbox: Inbox, user: str) -> AsyncIterator[Received]:
    """The file of a user's stream, which is gone when the block ends.

    Raises InvalidArgument for a stream without header or data or with another hash than announced, ResourceExhausted
    for too many bytes, when the inbox's disk is full and when too many uploads are running.
    """
    header = await _header(requests)
    with inbox.places.place(user), tempfile.TemporaryDirectory(prefix=PREFIX, dir=inbox.directory) as folder:
        path = Path(folder) / "data"
        digest = hashlib.sha256()
        size = 0
        with path.open("xb", buffering=0) as file:
            async for request in requests:
                if request.HasField("header"):
                    raise _refused("header", "is the first message alone; the others carry data")
                size += len(request.data)
                if size > inbox.max_bytes:
                    limit = str(inbox.max_bytes)
                    message = f"the file has more than {limit} bytes, the most that may be uploaded"
                    raise ResourceExhausted(message, reason=DATASET_TOO_LARGE, metadata={"limit": limit})
                await asyncio.to_thread(_take, file, digest, request.data, folder)
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


def _take(file: IO[bytes], digest: "hashlib._Hash", data: bytes, folder: str) -> None:
    digest.update(data)
    append(file, data, folder)


def _refused(field: str, message: str) -> InvalidArgument:
    return InvalidArgument(problems=[Problem(field, message)], reason="DATASET_UNREADABLE")
