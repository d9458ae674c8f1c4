"""Object stores on S3 servers that die, connections that break, and objects that change under a reader."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from servicekit import errors
from servicekit.objects import ObjectStore, open_object_store
from tests.support.proxy import Proxy
from tests.support.s3 import JuiceServer, S3Server

MEBIBYTE = 1024 * 1024


@pytest.fixture(params=["seaweed_server", "juice_server"])
def server(request: pytest.FixtureRequest) -> S3Server:
    server: S3Server = request.getfixturevalue(request.param)
    return server


@pytest.fixture
async def proxy(server: S3Server) -> AsyncIterator[Proxy]:
    async with Proxy(server.port) as running:
        yield running


@pytest.fixture
async def store(server: S3Server, proxy: Proxy) -> AsyncIterator[ObjectStore]:
    address = server.address(part_mib="5", threads="3")
    opened = open_object_store(address.replace(f":{urlsplit(address).port}/", f":{proxy.port}/"))
    yield opened
    await opened.close()


async def test_a_read_goes_on_where_it_broke(store: ObjectStore, proxy: Proxy) -> None:
    data = os.urandom(3 * MEBIBYTE + 11)
    await store.put_bytes("k", data)
    await proxy.cut()
    proxy.cut_after = [MEBIBYTE + 1000, 700_000, 2000]
    assert await store.get_bytes("k") == data
    assert proxy.cut_after == []
    await proxy.cut()
    proxy.cut_after = [MEBIBYTE, MEBIBYTE]
    assert b"".join([chunk async for chunk in store.read("k", 5, 2 * MEBIBYTE)]) == data[5 : 5 + 2 * MEBIBYTE]


async def test_a_large_download_survives_cuts(store: ObjectStore, proxy: Proxy, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(17 * MEBIBYTE + 5))
    await store.put_file("k", source)
    await proxy.cut()
    proxy.cut_after = [2 * MEBIBYTE, 100, 3 * MEBIBYTE, 4 * MEBIBYTE]
    await store.get_file("k", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "source"]


async def test_a_large_upload_survives_cuts(store: ObjectStore, proxy: Proxy, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(17 * MEBIBYTE + 5))
    proxy.cut_after = [0, 10, 20, 300]
    await store.put_file("k", source)
    assert await store.get_bytes("k") == source.read_bytes()


async def test_a_reader_never_mixes_versions(store: ObjectStore, proxy: Proxy) -> None:
    await store.put_bytes("k", b"1" * (4 * MEBIBYTE))
    await proxy.cut()
    proxy.cut_after = [2 * MEBIBYTE]
    chunks = store.read("k")
    await anext(chunks)
    await store.put_bytes("k", b"2" * (4 * MEBIBYTE))
    with pytest.raises(errors.Aborted, match="replaced"):
        while True:
            assert set(await anext(chunks)) == {ord("1")}


async def test_a_conditional_write_is_never_repeated_blindly(store: ObjectStore, proxy: Proxy) -> None:
    await store.put_bytes("warm", b"", if_absent=True)
    await proxy.cut()
    proxy.cut_after = [0]
    before = proxy.connections
    try:
        await store.put_bytes("k", b"x", if_absent=True)
    except errors.Unavailable:
        assert proxy.connections == before + 1


async def test_a_dead_server_is_unavailable_and_comes_back(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(12 * MEBIBYTE))
    with JuiceServer(tmp_path / "juice") as server:
        store = open_object_store(server.address(part_mib="5", retries="1"))
        await store.put_file("k", source)
        server.kill()
        operations = {
            "prepare": store.prepare(),
            "put_bytes": store.put_bytes("x", b""),
            "if_absent": store.put_bytes("x", b"", if_absent=True),
            "put_file": store.put_file("x", source),
            "get_bytes": store.get_bytes("k"),
            "get_file": store.get_file("k", tmp_path / "copy"),
            "stat": store.stat("k"),
            "list": anext(store.list()),
            "delete": store.delete("k"),
            "delete_prefix": store.delete_prefix("k/"),
        }
        began = time.monotonic()
        results = await asyncio.gather(*operations.values(), return_exceptions=True)
        assert {name: type(result) for name, result in zip(operations, results, strict=True)} == dict.fromkeys(
            operations, errors.Unavailable
        )
        assert "secret" not in "".join(str(result) for result in results)
        assert time.monotonic() - began < 20
        server.restart()
        assert await store.get_bytes("k") == source.read_bytes()
        await store.close()


async def test_a_short_outage_is_bridged(tmp_path: Path) -> None:
    with JuiceServer(tmp_path / "juice") as server:
        store = open_object_store(server.address())
        await store.put_bytes("k", b"before")
        server.kill()
        reading = asyncio.ensure_future(store.get_bytes("k"))
        await asyncio.to_thread(server.process.start)
        assert await reading == b"before"
        await store.close()


async def test_a_file_that_changes_is_not_uploaded(store: ObjectStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(60 * MEBIBYTE))
    upload = asyncio.ensure_future(store.put_file("k", source))
    await asyncio.wait([upload], timeout=0.03)
    os.truncate(source, 30 * MEBIBYTE)
    with pytest.raises(errors.FailedPrecondition, match="changed"):
        await upload
    assert await store.stat("k") is None
