"""Uploaded datasets: whole or not at all, versions that never change, owners."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from servicekit.errors import (
    InvalidArgument,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from servicekit.grpc_client import open_channel
from servicekit.identity import Role
from servicekit.spooling import Places
from services.task_service.tests.harness import Client, Service
from services.task_service.tests.uploads import (
    ROWS,
    nothing_is_left,
    parts,
    sqlite_only,
    stored,
    stub,
    training_on,
    upload,
)
from task_service.database.models import GarbageRow
from task_service.datasets import receiving
from task_service.datasets.checking import Checked
from tests.support.waiting import eventually
from tunesmith.task.v1 import dataset_service_pb2 as pb
from tunesmith.task.v1 import dataset_service_pb2_grpc


async def test_an_upload_is_stored_and_known(service: Service, alice: Client) -> None:
    service.dataset_checker.found = Checked(40, "instruction", [])
    dataset = await upload(alice, name="medical")
    assert (dataset.name, dataset.owner, dataset.type, dataset.version) == ("medical", "alice", "llm", 1)
    assert (dataset.size, dataset.sha256) == (len(ROWS), hashlib.sha256(ROWS).hexdigest())
    assert (dataset.samples, dataset.format, list(dataset.problems)) == (40, "instruction", [])
    assert (dataset.file_name, len(dataset.id), dataset.create_time.seconds > 0) == ("rows.jsonl", 26, True)
    assert await service.objects.get_bytes(dataset.object_key) == ROWS
    assert (await stub(alice).GetDataset(pb.GetDatasetRequest(dataset_id=dataset.id))).dataset == dataset
    assert list((await stub(alice).ListDatasets(pb.ListDatasetsRequest())).datasets) == [dataset]
    (token,) = service.dataset_checker.tokens
    assert token["authorization"].startswith("Bearer "), "the check is the caller's own"


async def test_versions(service: Service, alice: Client, bob: Client) -> None:
    """A name's next content is its next version; content that is there already is the version that has it."""
    first, second = await upload(alice), await upload(alice, ROWS + ROWS)
    assert (first.name, first.version, second.name, second.version) == ("rows", 1, "rows", 2)
    assert await upload(alice) == first
    assert (await upload(alice, name="other")).version == 1
    assert (await upload(bob)).owner == "bob"
    assert (await upload(alice, file_name="rows.txt", name="rows")).version == 3, "text is read in another way"
    found = await stub(alice).ListDatasets(pb.ListDatasetsRequest(name="rows"))
    assert [dataset.version for dataset in found.datasets] == [3, 2, 1]
    assert len(await stored(service)) == 5


async def test_uploads_at_once(service: Service, alice: Client) -> None:
    same = await asyncio.gather(*(upload(alice) for _ in range(4)))
    assert len({dataset.id for dataset in same}) == 1
    different = await asyncio.gather(*(upload(alice, ROWS * count) for count in range(2, 6)))
    assert sorted(dataset.version for dataset in different) == [2, 3, 4, 5]
    await service.garbage.collect_once()
    assert len(await stored(service)) == 5


async def test_a_cut_off_upload_leaves_nothing(service: Service, alice: Client, tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def endless() -> AsyncIterator[pb.UploadDatasetRequest]:
        yield pb.UploadDatasetRequest(header=pb.DatasetHeader(file_name="a.jsonl"))
        yield pb.UploadDatasetRequest(data=ROWS)
        begun.set()
        await asyncio.Event().wait()

    uploading = asyncio.ensure_future(stub(alice).UploadDataset(endless()))
    await begun.wait()
    await eventually(lambda: any((tmp_path / "uploads").iterdir()))
    uploading.cancel()
    await asyncio.gather(uploading, return_exceptions=True)
    await eventually(lambda: not any((tmp_path / "uploads").iterdir()))
    assert await nothing_is_left(service)


def test_what_a_killed_service_left_is_cleared(tmp_path: Path) -> None:
    old, new = tmp_path / "uploads" / "upload-old", tmp_path / "uploads" / "upload-new"
    for folder in (old, new):
        folder.mkdir(parents=True)
        (folder / "data").write_bytes(b"half")
    os.utime(old, (0, 0))
    receiving.Inbox(tmp_path / "uploads", 1, Places(1, 1)).prepare()
    assert not old.exists()
    assert new.exists(), "another replica may be at it"


async def test_a_store_that_fails_leaves_nothing(
    service: Service, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_file = service.objects.put_file

    async def fail_after(key: str, path: Path) -> None:
        await put_file(key, path)
        raise Unavailable("the store is down")

    with monkeypatch.context() as patch:
        patch.setattr(service.objects, "put_file", fail_after)
        with pytest.raises(Unavailable, match="store is down"):
            await upload(alice)
    assert await nothing_is_left(service)
    assert (await upload(alice)).version == 1


async def test_an_upload_that_was_given_up_for_dead_leaves_no_row(service: Service, alice: Client) -> None:
    """The garbage collector took its object, because it took longer than any upload does."""
    put_file = service.objects.put_file

    async def slow(key: str, path: Path) -> None:
        await put_file(key, path)
        async with service.core.database.sessions.begin() as session:
            await session.execute(update(GarbageRow).values(due_time=0))
        await service.garbage.collect_once()

    service.objects.put_file = slow  # type: ignore[method-assign]
    with pytest.raises(Unavailable, match="given up"):
        await upload(alice)
    assert await nothing_is_left(service)


async def test_another_users_dataset_does_not_exist(service: Service, alice: Client, bob: Client) -> None:
    dataset = await upload(alice)
    for call in (
        stub(bob).GetDataset(pb.GetDatasetRequest(dataset_id=dataset.id)),
        stub(bob).DeleteDataset(pb.DeleteDatasetRequest(dataset_id=dataset.id)),
        stub(alice).GetDataset(pb.GetDatasetRequest(dataset_id="0" * 26)),
        stub(alice).GetDataset(pb.GetDatasetRequest(dataset_id="a\0b")),
    ):
        with pytest.raises(NotFound) as caught:
            await call
        assert caught.value.reason == "DATASET_NOT_FOUND"
    for request in (pb.ListDatasetsRequest(), pb.ListDatasetsRequest(name="\0", type="\0")):
        assert list((await stub(bob).ListDatasets(request)).datasets) == []
    with pytest.raises(InvalidArgument, match=f"there is no dataset {dataset.id}"):
        await bob.create(spec=training_on(dataset.id))
    for role in (Role.ADMIN, Role.SERVICE):
        other = service.client("root", role)
        assert (await stub(other).GetDataset(pb.GetDatasetRequest(dataset_id=dataset.id))).dataset == dataset
        assert list((await stub(other).ListDatasets(pb.ListDatasetsRequest())).datasets) == []


async def test_pages_of_datasets(alice: Client) -> None:
    for count in range(1, 6):
        await upload(alice, ROWS * count, name=f"n{count % 2}", type="llm" if count < 5 else "image_classifier")
    everything = [dataset.id for dataset in (await stub(alice).ListDatasets(pb.ListDatasetsRequest())).datasets]
    seen, token = [], ""
    while True:
        page = await stub(alice).ListDatasets(pb.ListDatasetsRequest(page_size=2, page_token=token))
        seen += [dataset.id for dataset in page.datasets]
        if not (token := page.next_page_token):
            break
        with pytest.raises(InvalidArgument, match="page_token"):
            await stub(alice).ListDatasets(pb.ListDatasetsRequest(page_size=2, page_token=token, type="llm"))
    assert seen == everything
    assert len(set(seen)) == 5
    found = (await stub(alice).ListDatasets(pb.ListDatasetsRequest(type="llm", name="n1"))).datasets
    assert [dataset.version for dataset in found] == [2, 1]


@sqlite_only
async def test_nobody_uploads_without_a_token(service: Service) -> None:
    channel = open_channel(service.target)
    anonymous: Any = dataset_service_pb2_grpc.DatasetServiceStub(channel)
    with pytest.raises(Unauthenticated):
        await anonymous.UploadDataset(parts(pb.DatasetHeader(file_name="a.txt"), b"a"))
    await channel.close()
