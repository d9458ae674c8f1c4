"""Datasets that are uploaded, in the object store or in the hub's cache (T18, F11, C4, faults 44 and 53)."""

import asyncio
import hashlib
import json
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from modelkit.datasets import DataCache, DatasetFiles, Reading, validate
from modelkit.errors import InvalidDataset
from modelkit.paths import AllowedRoots
from servicekit.errors import NotFound
from servicekit.objects import ObjectStore
from tunesmith.task.v1 import dataset_service_pb2 as datasets
from tunesmith.task.v1 import spec_pb2
from workerkit.datasets import DatasetChecks
from workerkit.remote_datasets import RemoteDatasets, key_in_store

LINES = b"".join(json.dumps({"prompt": f"q{n}", "response": f"a{n}"}).encode() + b"\n" for n in range(5))
KEY = "datasets/d1/train.jsonl"


class Uploads:
    """The task service's answer about uploads; remembers on whose behalf it was asked."""

    def __init__(self) -> None:
        self.known: dict[str, datasets.Dataset] = {}
        self.asked_by: list[str] = []

    async def get(self, request: datasets.GetDatasetRequest, *, metadata: Any = None) -> datasets.GetDatasetResponse:
        self.asked_by.append(dict(metadata or ()).get("authorization", ""))
        if request.dataset_id not in self.known:
            raise NotFound("there is no such dataset")
        return datasets.GetDatasetResponse(dataset=self.known[request.dataset_id])


class Reader:
    """Finds datasets the way the service does, in a thread."""

    def __init__(self, folder: Path, store: ObjectStore, uploads: Uploads) -> None:
        self.cache = DataCache(folder / "cache")
        remote = RemoteDatasets(store, f"file://{folder}/objects", uploads.get, self.cache)
        self.checks = DatasetChecks(self.cache, remote, hub_cache=folder / "hub")
        self.roots = AllowedRoots([folder / "data"])

    async def find(self, token: str = "", **source: str) -> DatasetFiles:
        found = spec_pb2.DatasetSource(**source)  # type: ignore[arg-type]
        return await asyncio.to_thread(self.checks.find, found, self.roots, Reading(), where="dataset", token=token)

    async def rows(self, **source: str) -> int:
        report = validate(await self.find(**source))
        assert report.valid, report.problems
        return report.rows


@pytest.fixture
def uploads() -> Uploads:
    return Uploads()


@pytest.fixture
async def reader(tmp_path: Path, store: ObjectStore, uploads: Uploads) -> AsyncIterator[Reader]:
    await store.prepare()
    (tmp_path / "data").mkdir()
    yield Reader(tmp_path, store, uploads)
    await store.close()


async def upload(store: ObjectStore, uploads: Uploads, name: str, content: bytes) -> None:
    await store.put_bytes(KEY, content)
    sha256 = hashlib.sha256(content).hexdigest()
    uploads.known["d1"] = datasets.Dataset(id="d1", sha256=sha256, file_name=name, object_key=KEY)


async def test_an_upload_is_fetched_once_on_behalf_of_its_owner(
    reader: Reader, store: ObjectStore, uploads: Uploads, tmp_path: Path
) -> None:
    await upload(store, uploads, "mine.jsonl", LINES)
    assert await reader.rows(dataset_id="d1", token="secret") == 5
    await store.delete(KEY)
    assert await reader.rows(dataset_id="d1") == 5
    assert uploads.asked_by == ["Bearer secret", ""]
    with pytest.raises(InvalidDataset, match="no dataset 'd2'"):
        await reader.find(dataset_id="d2")


@pytest.mark.parametrize("name", ["a.zip", "../../etc/a.zip"])
async def test_an_uploaded_archive_is_unpacked(
    reader: Reader, store: ObjectStore, uploads: Uploads, tmp_path: Path, name: str
) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("train.jsonl", LINES)
    await upload(store, uploads, name, (tmp_path / "x.zip").read_bytes())
    assert await reader.rows(dataset_id="d1") == 5


async def test_a_damaged_upload_is_refused(reader: Reader, store: ObjectStore, uploads: Uploads) -> None:
    await upload(store, uploads, "mine.jsonl", LINES)
    await store.put_bytes(KEY, LINES[:-5] + b"xxxxx")
    with pytest.raises(InvalidDataset, match="is damaged"):
        await reader.find(dataset_id="d1")
    assert not list(reader.cache.root.glob("upload-*"))


async def test_objects_of_the_store_are_read_by_their_address(
    reader: Reader, store: ObjectStore, tmp_path: Path
) -> None:
    await store.put_bytes("shared/a.jsonl", LINES)
    await store.put_bytes("shared/set/train.jsonl", LINES)
    await store.put_bytes("shared/set/valid.jsonl", LINES[:30])
    assert await reader.rows(uri=f"file://{tmp_path}/objects/shared/a.jsonl") == 5
    files = await reader.find(uri=f"file://{tmp_path}/objects/shared/set")
    assert files.validation is not None
    with pytest.raises(InvalidDataset, match="nothing at"):
        await reader.find(uri=f"file://{tmp_path}/objects/shared/b.jsonl")
    await store.put_bytes("shared/a.jsonl", LINES + LINES)
    assert await reader.rows(uri=f"file://{tmp_path}/objects/shared/a.jsonl") == 10


@pytest.mark.parametrize(
    "uri",
    [
        "file:///etc/passwd",
        "s3://bucket/key",
        "file:///objects/tasks/t1/train.jsonl",
        "file:///objects/datasets/d1/train.jsonl",
        "file:///objects/",
        "file:///objects/shared/%2e%2e/tasks/t1/train.jsonl",
        "file:///objects/.incoming/x",
        "https://example.org/a.jsonl",
    ],
)
async def test_nothing_else_is_read_by_an_address(reader: Reader, store: ObjectStore, tmp_path: Path, uri: str) -> None:
    """Fault 53: what belongs to others."""
    for key in ("tasks/t1/train.jsonl", "datasets/d1/train.jsonl", "shared/train.jsonl"):
        await store.put_bytes(key, LINES)
    with pytest.raises(InvalidDataset) as caught:
        await reader.find(uri=uri.replace("/objects/", f"{tmp_path}/objects/"))
    assert caught.value.problems[0].field == "dataset.uri"


def test_addresses_in_an_s3_store() -> None:
    store = "s3://KEY:SECRET@host:9000/bucket/some/prefix?secure=true"
    assert key_in_store("s3://bucket/some/prefix/shared/a.csv", store, field="uri") == "shared/a.csv"
    for uri in ("s3://bucket/other/a.csv", "s3://other/some/prefix/a.csv", "s3://KEY:SECRET@bucket/some/prefix/a.csv"):
        with pytest.raises(InvalidDataset, match=r"s3://bucket/some/prefix/<key>.* hf://owner/name") as caught:
            key_in_store(uri, store, field="uri")
        assert "SECRET" not in str(caught.value)


async def test_a_hub_id_is_found_in_the_local_cache(reader: Reader, tmp_path: Path) -> None:
    """C4: nothing is downloaded."""
    snapshot = tmp_path / "hub" / "datasets--tatsu-lab--alpaca" / "snapshots" / "abc"
    (snapshot / "data").mkdir(parents=True)
    blob = tmp_path / "hub" / "datasets--tatsu-lab--alpaca" / "blobs" / "1"
    blob.parent.mkdir()
    blob.write_bytes(LINES)
    (snapshot / "data" / "train-00000-of-00001.jsonl").symlink_to(blob)
    (snapshot / "README.md").write_text("x")
    assert await reader.rows(hub_id="tatsu-lab/alpaca") == 5
    assert await reader.rows(path="tatsu-lab/alpaca") == 5
    with pytest.raises(InvalidDataset, match="nothing is downloaded"):
        await reader.find(hub_id="owner/other")
    with pytest.raises(InvalidDataset, match="not a hub id"):
        await reader.find(hub_id="../alpaca")
