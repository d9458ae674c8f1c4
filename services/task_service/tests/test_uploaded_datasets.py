"""Uploaded datasets: whole or not at all, versions that never change, owners, and tasks that use them."""

import asyncio
import hashlib
import io
import json
import os
import tarfile
import zipfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update

from servicekit import spooling
from servicekit.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Problem,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from servicekit.grpc_client import open_channel
from servicekit.identity import Role
from servicekit.spooling import Places
from services.task_service.tests.harness import Client, Service, language_model_spec, running_service
from task_service.database.models import DatasetRow, GarbageRow
from task_service.datasets import receiving
from task_service.datasets.checking import Checked, TrainerDatasetChecker
from task_service.datasets.files import clean_file_name
from tests.support.nats import NatsServer
from tests.support.waiting import eventually
from tunesmith.task.v1 import dataset_service_pb2 as pb
from tunesmith.task.v1 import dataset_service_pb2_grpc, spec_pb2, task_pb2

ROWS = b"".join(json.dumps({"instruction": f"n{n}", "output": "\u4f60\u597d"}).encode() + b"\n" for n in range(40))
sqlite_only = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def stub(client: Client) -> Any:
    return dataset_service_pb2_grpc.DatasetServiceStub(client.channel)


async def parts(header: pb.DatasetHeader, data: bytes, size: int = 100) -> AsyncIterator[pb.UploadDatasetRequest]:
    yield pb.UploadDatasetRequest(header=header)
    for start in range(0, len(data), size):
        yield pb.UploadDatasetRequest(data=data[start : start + size])


async def upload(client: Client, data: bytes = ROWS, file_name: str = "rows.jsonl", **header: Any) -> pb.Dataset:
    requests = parts(pb.DatasetHeader(file_name=file_name, **header), data)
    dataset: pb.Dataset = (await stub(client).UploadDataset(requests)).dataset
    return dataset


async def stored(service: Service) -> list[str]:
    return [info.key async for info in service.objects.list("datasets/")]


async def nothing_is_left(service: Service) -> bool:
    """No row, and no object that is not about to be deleted."""
    await service.garbage.collect_once()
    async with service.core.database.sessions() as session:
        rows = await session.scalar(select(func.count()).select_from(DatasetRow))
        planned = await session.scalar(select(func.count()).select_from(GarbageRow))
    return not rows and not planned and await stored(service) == []


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


def archive(kind: str) -> bytes:
    target = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(target, "w") as packed:
            packed.writestr("train.jsonl", ROWS)
    else:
        with tarfile.open(fileobj=target, mode="w:gz" if kind == "tar.gz" else "w") as packed_tar:
            info = tarfile.TarInfo("train.jsonl")
            info.size = len(ROWS)
            packed_tar.addfile(info, io.BytesIO(ROWS))
    return target.getvalue()


@sqlite_only
@pytest.mark.parametrize(
    ("file_name", "data"),
    [
        ("a.JSONL", ROWS),
        ("a.json", b"[]"),
        ("a.csv", "question,answer\n\u95ee\u9898,\u7b54\u6848\n".encode()),
        ("a.txt", ROWS[:-9] + b"\n\xff one bad line is for the check of rows\n"),
        ("a.txt", "\u6587".encode() * 50_000),
        ("a.zip", archive("zip")),
        ("a.tar", archive("tar")),
        ("a.tar.gz", archive("tar.gz")),
        ("a.parquet", b"PAR1 columns PAR1"),
    ],
)
async def test_every_form_is_taken(service: Service, alice: Client, file_name: str, data: bytes) -> None:
    dataset = await upload(alice, data, file_name)
    assert (dataset.name, dataset.size) == ("a", len(data))
    assert await service.objects.get_bytes(dataset.object_key) == data


@sqlite_only
@pytest.mark.parametrize(
    ("file_name", "data", "header", "field"),
    [
        ("model.bin", ROWS, {}, "header.file_name"),
        (".jsonl", ROWS, {}, "header.file_name"),
        ("a.jsonl", b"", {}, "data"),
        ("a.jsonl", ROWS, {"sha256": "0" * 64}, "header.sha256"),
        ("a.jsonl", "\u95ee\u9898\n".encode("gbk") * 30, {}, "data"),
        ("a.jsonl", '{"text": "a"}'.encode("utf-16"), {}, "data"),
        ("a.zip", ROWS, {}, "data"),
        ("a.tar.gz", ROWS, {}, "data"),
        ("a.parquet", b"PAR", {}, "data"),
        ("a.jsonl", ROWS, {"name": "a\nb", "type": "\0"}, "header.name header.type"),
    ],
)
async def test_what_nobody_could_read_is_refused(
    service: Service, alice: Client, file_name: str, data: bytes, header: dict[str, str], field: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await upload(alice, data, file_name, **header)
    assert " ".join(problem.field for problem in caught.value.problems) == field
    assert caught.value.reason == "DATASET_UNREADABLE"
    assert await nothing_is_left(service)


@sqlite_only
async def test_the_first_message_describes_the_file_and_no_other(alice: Client) -> None:
    header, data = (
        pb.UploadDatasetRequest(header=pb.DatasetHeader(file_name="a.txt")),
        pb.UploadDatasetRequest(data=b"a"),
    )
    sequences: Sequence[list[pb.UploadDatasetRequest]] = ([], [data], [header, data, header])
    for requests in sequences:
        with pytest.raises(InvalidArgument) as caught:
            await stub(alice).UploadDataset(iter(requests))
        assert [problem.field for problem in caught.value.problems] == ["header"]


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("../../etc/passwd.jsonl", "passwd.jsonl"),
        ("C:\\data\\\u6570\u636e.csv", "\u6570\u636e.csv"),
        ("a\0b\x1b[31m\u202e.jsonl", "ab[31m.jsonl"),
        ("  .. hidden.txt ", "hidden.txt"),
        ("\u6587" * 200 + ".tar.gz", "\u6587" * 82 + ".tar.gz"),
        ("..", ""),
    ],
)
def test_names_of_files_lose_directories_and_what_cannot_be_seen(name: str, clean: str) -> None:
    assert clean_file_name(name) == clean
    assert len(clean.encode()) <= 255


async def test_too_large_an_upload_is_refused(
    tmp_path: Path, database_url: str, shared_nats_server: NatsServer
) -> None:
    async with running_service(tmp_path, database_url, shared_nats_server.url, max_upload_bytes=1000) as service:
        alice = service.client()
        with pytest.raises(ResourceExhausted, match="1000") as caught:
            await upload(alice, bytes(1001))
        assert caught.value.reason == "DATASET_TOO_LARGE"
        assert await nothing_is_left(service)


@sqlite_only
async def test_a_full_disk_is_told(service: Service, alice: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spooling, "RESERVE_BYTES", 1 << 60)
    with pytest.raises(ResourceExhausted) as caught:
        await upload(alice)
    assert caught.value.reason == "DISK_FULL"
    assert await nothing_is_left(service)


async def test_problems_of_rows_are_kept_and_keep_tasks_away(service: Service, alice: Client) -> None:
    service.dataset_checker.found = Checked(3, "messages", ["rows.jsonl: no output (2 lines: 4, 9); add one"])
    dataset = await upload(alice)
    assert list(dataset.problems) == ["rows.jsonl: no output (2 lines: 4, 9); add one"]
    with pytest.raises(InvalidArgument, match="4, 9") as caught:
        await alice.create(spec=training_on(dataset.id))
    assert [problem.field for problem in caught.value.problems] == ["spec.finetune.dataset.dataset_id"]


async def test_a_file_that_the_trainer_cannot_read_is_not_kept(service: Service, alice: Client) -> None:
    problem = Problem("dataset.dataset_id", "the archive is damaged")
    service.dataset_checker.error = InvalidArgument(problems=[problem], reason="DATASET_INVALID")
    with pytest.raises(InvalidArgument, match="damaged") as caught:
        await upload(alice, archive("zip"), "a.zip")
    assert [found.field for found in caught.value.problems] == ["data"]
    assert caught.value.reason == "DATASET_INVALID"
    assert await nothing_is_left(service)


async def test_without_a_trainer_a_dataset_is_kept_and_checked_when_it_comes_again(
    service: Service, alice: Client
) -> None:
    first = await upload(alice)
    assert (first.format, first.samples) == ("", 0)
    service.dataset_checker.found = Checked(40, "instruction", [])
    again = await upload(alice)
    assert (again.id, again.format, again.samples) == (first.id, "instruction", 40)


@sqlite_only
async def test_pictures_are_not_checked_as_text(service: Service, alice: Client) -> None:
    service.dataset_checker.error = InvalidArgument("no rows")
    assert (await upload(alice, archive("zip"), "cats.zip", type="image_classifier")).type == "image_classifier"


async def test_an_unreachable_trainer_checks_nothing(unused_tcp_port: int) -> None:
    channel = open_channel(f"127.0.0.1:{unused_tcp_port}")
    assert await TrainerDatasetChecker(channel, 5.0).check("d", None) is None
    await channel.close()


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


def training_on(dataset_id: str) -> spec_pb2.TaskSpec:
    spec = language_model_spec()
    spec.finetune.dataset.dataset_id = dataset_id
    return spec


async def delete(client: Client, dataset: pb.Dataset) -> None:
    await stub(client).DeleteDataset(pb.DeleteDatasetRequest(dataset_id=dataset.id))


async def test_a_dataset_in_use_cannot_be_deleted(service: Service, alice: Client) -> None:
    dataset = await upload(alice)
    task = await alice.create(spec=training_on(dataset.id))
    with pytest.raises(FailedPrecondition, match=task.id) as caught:
        await delete(alice, dataset)
    assert caught.value.reason == "DATASET_IN_USE"
    attempt = await service.worker().claim(task.id)
    with pytest.raises(FailedPrecondition):
        await delete(alice, dataset)
    await attempt.say(completed=attempt.completed())
    await service.record_facts()
    await delete(alice, dataset)
    assert await nothing_is_left(service)
    assert (await alice.get(task.id)).spec.finetune.dataset.dataset_id == dataset.id


async def test_a_task_whose_dataset_is_gone_is_not_resumed(alice: Client) -> None:
    dataset = await upload(alice)
    task = await alice.create(spec=training_on(dataset.id))
    await alice.stop(task.id)
    assert (await alice.resume(task.id)).state == task_pb2.STATE_PENDING
    await alice.stop(task.id)
    await delete(alice, dataset)
    with pytest.raises(FailedPrecondition, match="deleted") as caught:
        await alice.resume(task.id)
    assert caught.value.reason == "DATASET_DELETED"


async def test_a_deleted_task_frees_its_dataset(alice: Client) -> None:
    dataset = await upload(alice)
    task = await alice.create(spec=training_on(dataset.id))
    await alice.delete(task.id)
    await delete(alice, dataset)


async def test_a_dataset_deleted_while_a_task_is_made_is_missed(service: Service, alice: Client) -> None:
    """The check before the transaction saw it, the transaction does not."""
    dataset = await upload(alice)

    async def delete_meanwhile(spec: spec_pb2.TaskSpec, identity: Any) -> list[Any]:
        await delete(alice, dataset)
        return []

    service.checker.problems = delete_meanwhile  # type: ignore[method-assign]
    with pytest.raises(InvalidArgument, match="there is no dataset"):
        await alice.create(spec=training_on(dataset.id))
    assert (await alice.page(with_total=True)).total_size == 0


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


@sqlite_only
async def test_nobody_uploads_without_a_token(service: Service) -> None:
    channel = open_channel(service.target)
    anonymous: Any = dataset_service_pb2_grpc.DatasetServiceStub(channel)
    with pytest.raises(Unauthenticated):
        await anonymous.UploadDataset(parts(pb.DatasetHeader(file_name="a.txt"), b"a"))
    await channel.close()
