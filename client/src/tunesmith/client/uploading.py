"""Uploads: a file as the body of a request, which is no message that could be transcoded."""

import asyncio
from collections.abc import AsyncIterator
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


class DatasetUpload(Exchange[UploadDatasetResponse, Dataset]):
    """The upload of one file with its retries. The same content twice is one version, so it may be sent again."""

    def __init__(self, path: Path, header: DatasetHeader, config: Config) -> None:
        service = dataset_service_pb2.DESCRIPTOR.services_by_name["DatasetService"]
        method = service.methods_by_name["UploadDataset"]
        operation = Operation(method, header, UploadDatasetResponse, lambda response: response.dataset)
        query = tuple((field.name, str(value)) for field, value in header.ListFields())
        super().__init__(operation, config, HttpCall("POST", PATH, query, None))
        self.path = path

    def build_upload(
        self, http: httpx.Client | httpx.AsyncClient, content: IO[bytes] | AsyncIterator[bytes]
    ) -> httpx.Request:
        """The request to send, with the file's bytes as its body."""
        headers = {
            "accept": "application/json",
            "content-type": "application/octet-stream",
            "content-length": str(self.path.stat().st_size),
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


async def chunks(file: IO[bytes]) -> AsyncIterator[bytes]:
    """The rest of a file, read in a thread."""
    while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
        yield chunk
