"""Uploads: a file as the body of a request, which is no message that could be transcoded."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import IO

import httpx

from tunesmith.client.config import Config
from tunesmith.client.errors import InvalidArgument, Problem
from tunesmith.client.exchange import Exchange, Operation
from tunesmith.client.transcoding import HttpCall
from tunesmith.task.v1 import dataset_service_pb2
from tunesmith.task.v1.dataset_service_pb2 import Dataset, DatasetHeader, UploadDatasetResponse

CHUNK_BYTES = 1 << 20
# The answer comes when every row has been checked.
CHECK_SECONDS = 600.0
PATH = "/v1/datasets"

# Takes the bytes sent and the bytes in all.
Progress = Callable[[int, int], None]


class DatasetUpload(Exchange[UploadDatasetResponse, Dataset]):
    """The upload of one file with its retries. The same content twice is one version, so it may be sent again."""

    def __init__(self, path: Path, header: DatasetHeader, config: Config) -> None:
        service = dataset_service_pb2.DESCRIPTOR.services_by_name["DatasetService"]
        method = service.methods_by_name["UploadDataset"]
        operation = Operation(method, header, UploadDatasetResponse, lambda response: response.dataset)
        query = tuple((field.name, str(value)) for field, value in header.ListFields())
        super().__init__(operation, config, HttpCall("POST", PATH, query, None))
        self.path = path
        self.size = path.stat().st_size

    def build_upload(
        self, http: httpx.Client | httpx.AsyncClient, content: Iterator[bytes] | AsyncIterator[bytes]
    ) -> httpx.Request:
        """The request to send, with the file's bytes as its body."""
        headers = {
            "accept": "application/json",
            "content-type": "application/octet-stream",
            "content-length": str(self.size),
        }
        return http.build_request(
            self._call.verb,
            self._config.url + self._call.path,
            params=list(self._call.query),
            content=content,
            headers={**self._config.headers, **headers},
            timeout=httpx.Timeout(self._config.stream_timeout, read=CHECK_SECONDS),
        )


def dataset_upload(path: Path | str, config: Config, *, name: str = "", kind: str = "") -> DatasetUpload:
    """The upload of a file under a name, its own without the ending unless another is given.

    kind is that of the data; empty means "llm".
    Raises InvalidArgument when there is no such file.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        what = "is a directory; pack it into a ZIP or TAR first" if file.is_dir() else "does not exist"
        raise InvalidArgument(f"{file} {what}", problems=[Problem("file", what)])
    return DatasetUpload(file, DatasetHeader(name=name, type=kind, file_name=file.name), config)


def ignore(done: int, size: int) -> None:
    """Nobody wants to know how far an upload is."""


def sent(file: IO[bytes], size: int, progress: Progress) -> Iterator[bytes]:
    """The rest of a file, with a call of progress after each piece that was taken."""
    done = 0
    while chunk := file.read(CHUNK_BYTES):
        yield chunk
        done += len(chunk)
        progress(done, size)


async def sent_in_threads(file: IO[bytes], size: int, progress: Progress) -> AsyncIterator[bytes]:
    """As sent, reading in a thread."""
    done = 0
    while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
        yield chunk
        done += len(chunk)
        progress(done, size)
