"""How much may be uploaded: by file, by user, at once, and while the disk has space."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from servicekit import spooling
from servicekit.errors import ResourceExhausted
from services.task_service.tests.harness import Client, Service, running_service
from services.task_service.tests.uploads import ROWS, delete, nothing_is_left, parts, sqlite_only, stored, stub, upload
from tests.support.nats import NatsServer
from tests.support.waiting import eventually
from tunesmith.task.v1 import dataset_service_pb2 as pb


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


async def test_a_user_stores_only_so_much(tmp_path: Path, database_url: str, shared_nats_server: NatsServer) -> None:
    size = len(ROWS)
    async with running_service(
        tmp_path, database_url, shared_nats_server.url, dataset_bytes_per_user=3 * size
    ) as service:
        alice, bob = service.client("alice"), service.client("bob")
        first = await upload(alice)
        assert (await upload(alice, ROWS + ROWS)).version == 2
        for name in ("rows", "other"):
            with pytest.raises(ResourceExhausted, match="delete datasets") as caught:
                await upload(alice, ROWS + b"\n", name=name)
            assert caught.value.reason == "STORAGE_EXHAUSTED"
            expected = {"used": str(3 * size), "wanted": str(size + 1), "allowed": str(3 * size)}
            assert caught.value.metadata == expected
            assert all(number in caught.value.message for number in expected.values())
        assert await upload(alice) == first, "what is there already needs no room"
        assert (await upload(bob, ROWS * 3)).size == 3 * size
        await service.garbage.collect_once()
        assert len(await stored(service)) == 3
        await delete(alice, first)
        assert (await upload(alice, ROWS[:-1])).version == 3


async def test_uploads_at_once_do_not_exceed_it_together(
    tmp_path: Path, database_url: str, shared_nats_server: NatsServer
) -> None:
    async with running_service(
        tmp_path, database_url, shared_nats_server.url, dataset_bytes_per_user=2 * len(ROWS) + 10
    ) as service:
        alice = service.client("alice")
        uploads = (upload(alice, ROWS + b"\n" * number, name=f"n{number}") for number in range(4))
        results = await asyncio.gather(*uploads, return_exceptions=True)
        refused = [result for result in results if isinstance(result, ResourceExhausted)]
        assert [error.reason for error in refused] == ["STORAGE_EXHAUSTED"] * 2
        await service.garbage.collect_once()
        assert len(await stored(service)) == 2


@sqlite_only
async def test_only_so_many_are_taken_in_at_once(
    tmp_path: Path, database_url: str, shared_nats_server: NatsServer
) -> None:
    limits = {"uploads_at_once": 2, "uploads_per_user": 1}
    async with running_service(tmp_path, database_url, shared_nats_server.url, **limits) as service:
        go_on = asyncio.Event()

        async def slow() -> AsyncIterator[pb.UploadDatasetRequest]:
            async for request in parts(pb.DatasetHeader(file_name="a.jsonl"), ROWS):
                yield request
            await go_on.wait()

        alice, bob, carol = (service.client(user) for user in ("alice", "bob", "carol"))
        uploading = [asyncio.ensure_future(stub(client).UploadDataset(slow())) for client in (alice, bob)]
        await eventually(lambda: len(list((tmp_path / "uploads").iterdir())) == 2)
        for client, says in ((alice, "for one user"), (carol, "the most at once")):
            with pytest.raises(ResourceExhausted, match=says) as caught:
                await upload(client)
            assert caught.value.reason == "TOO_MANY_UPLOADS"
        go_on.set()
        await asyncio.gather(*uploading)
        assert (await upload(carol)).owner == "carol"
