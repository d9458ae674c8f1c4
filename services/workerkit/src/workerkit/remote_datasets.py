"""Datasets that lie elsewhere: uploads and objects in the store, fetched once and found again by their content."""

import asyncio
import hashlib
from collections.abc import Coroutine
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

from modelkit.datasets import DataCache, key_of
from modelkit.errors import InvalidDataset, Problem
from servicekit.errors import InvalidArgument, NotFound
from servicekit.objects import ObjectInfo, ObjectStore, redacted_url
from tunesmith.task.v1 import dataset_service_pb2 as datasets
from workerkit.sources import identity

T = TypeVar("T")

# What the platform itself keeps in the store belongs to tasks and uploads; their owners reach it through them.
PLATFORM_FOLDERS = ("tasks", "datasets", "logs")
READ_BYTES = 1 << 20
MAX_OBJECTS = 10_000


class GetDataset(Protocol):
    """The task service's GetDataset."""

    def __call__(self, request: datasets.GetDatasetRequest, *, metadata: Any = None) -> Any:
        """An awaitable of the response."""


class RemoteDatasets:
    """Fetches into a cache. Its methods block; call them in a thread beside the loop that was running at the start."""

    def __init__(self, store: ObjectStore, store_url: str, get_dataset: GetDataset, cache: DataCache) -> None:
        self._store = store
        self._store_url = store_url
        self._get_dataset = get_dataset
        self._cache = cache
        self._loop = asyncio.get_running_loop()

    def uploaded(self, dataset_id: str, *, field: str, token: str = "") -> Path:
        """The file of an uploaded dataset, for whoever the token belongs to, without one for the service itself.

        Raises InvalidDataset without such a dataset, or when its content is not what its hash says; TunesmithError.
        """
        request = datasets.GetDatasetRequest(dataset_id=dataset_id)
        try:
            answer = self._await(self._ask(request, token))
        except NotFound as error:
            raise InvalidDataset(Problem(field, f"there is no dataset {dataset_id!r}"), reason="NO_DATASET") from error
        dataset: datasets.Dataset = answer.dataset
        name = PurePosixPath(dataset.file_name).name or "data.jsonl"

        def fill(folder: Path) -> None:
            self._await(self._store.get_file(dataset.object_key, folder / name))
            if _sha256(folder / name) != dataset.sha256:
                message = f"the stored file of dataset {dataset_id!r} is damaged: its hash differs; upload it again"
                raise InvalidDataset(Problem(field, message), reason="DATASET_DAMAGED")

        return self._cache.get(f"upload-{key_of(dataset.sha256, name)}", fill) / name

    def stored(self, uri: str, *, field: str) -> Path:
        """The file or the folder of files that an address in the platform's store names.

        Raises InvalidDataset for any other address and without such objects; TunesmithError.
        """
        key = key_in_store(uri, self._store_url, field=field)
        try:
            found = self._await(self._find(key))
        except InvalidArgument as error:
            raise InvalidDataset([Problem(field, item.message) for item in error.problems]) from error
        if len(found) > MAX_OBJECTS:
            raise InvalidDataset(Problem(field, f"{uri} holds more than {MAX_OBJECTS} objects"))
        if not found:
            raise InvalidDataset(Problem(field, f"there is nothing at {uri}"), reason="NO_OBJECT")

        def fill(folder: Path) -> None:
            for item in found:
                self._await(self._store.get_file(item.key, folder / item.key.removeprefix(base)))

        base = key.removesuffix(key.rpartition("/")[2]) if found[0].key == key else f"{key}/"
        entry = self._cache.get(f"object-{key_of([(item.key, item.size, item.modified) for item in found])}", fill)
        return entry / key.removeprefix(base) if found[0].key == key else entry

    async def _ask(self, request: datasets.GetDatasetRequest, token: str) -> Any:
        return await self._get_dataset(request, metadata=identity(token))

    async def _find(self, key: str) -> list[ObjectInfo]:
        """The object of a key, else those in the folder of that name."""
        if info := await self._store.stat(key):
            return [info]
        found = []
        async for info in self._store.list(f"{key}/"):
            found.append(info)
            if len(found) > MAX_OBJECTS:
                break
        return found

    def _await(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def key_in_store(uri: str, store_url: str, *, field: str) -> str:
    """The key of an object in the platform's store. Raises InvalidDataset for any other address."""
    parts, store = urlsplit(uri), urlsplit(store_url)
    root = unquote(store.path).rstrip("/")
    if store.scheme == "s3":
        bucket, _, prefix = root.lstrip("/").partition("/")
        expected = "/".join(["s3:/", bucket, *([prefix] if prefix else [])])
    else:
        expected = f"file://{root}"
    given = f"{parts.scheme}://{parts.netloc}{unquote(parts.path)}"
    key = given.removeprefix(f"{expected}/").rstrip("/")
    if not given.startswith(f"{expected}/") or not key or parts.query or parts.fragment or "@" in parts.netloc:
        message = (
            f"{redacted_url(uri)!r} is not an address in the platform's object store; write {expected}/<key>, "
            "a path on this machine, or hf://owner/name"
        )
        raise InvalidDataset(Problem(field, message), reason="NOT_IN_STORE")
    if key.split("/")[0] in (*PLATFORM_FOLDERS, "") or key.startswith("."):
        message = f"{redacted_url(uri)!r} belongs to the platform itself; name an uploaded dataset by its id"
        raise InvalidDataset(Problem(field, message), reason="NOT_IN_STORE")
    return key


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
