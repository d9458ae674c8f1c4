"""What every object store does alike: a directory, SeaweedFS, and JuiceFS behind MinIO's gateway."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import urllib3

from servicekit import errors
from servicekit.objects import ObjectStore, open_object_store
from tests.support.s3 import JuiceServer, S3Server, SeaweedServer

MEBIBYTE = 1024 * 1024
STORES = ("file", "seaweedfs", "juicefs")
S3_STORES = STORES[1:]


def address_of(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if name == "file":
        return (tmp_path / "objects").as_uri()
    server: S3Server = request.getfixturevalue("seaweed_server" if name == "seaweedfs" else "juice_server")
    return server.address(part_mib="5")


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ObjectStore]:
    opened = open_object_store(address_of(request.param, request, tmp_path))
    await opened.prepare()
    yield opened
    await opened.close()


async def keys(store: ObjectStore, prefix: str = "") -> list[str]:
    return sorted([info.key async for info in store.list(prefix)])


async def test_bytes_come_back(store: ObjectStore) -> None:
    for data in (b"", b"x", os.urandom(3 * MEBIBYTE + 1)):
        await store.put_bytes("folder/some object.bin", data)
        assert await store.get_bytes("folder/some object.bin") == data


async def test_keys_may_hold_what_names_hold(store: ObjectStore) -> None:
    names = ["a/ü 1+%?&#=.txt", "a/模型/权重", "a/.hidden", "a/%2e%2e", "a/" + "n" * 255, "a/~'\"*:;,@!$()[]{}<>|^`"]
    for name in names:
        await store.put_bytes(name, name.encode())
    assert await keys(store) == sorted(names)
    for name in names:
        assert await store.get_bytes(name) == name.encode()


async def test_put_replaces(store: ObjectStore) -> None:
    await store.put_bytes("k", b"a long first version")
    await store.put_bytes("k", b"second")
    assert await store.get_bytes("k") == b"second"


async def test_stat_tells_size_and_time(store: ObjectStore) -> None:
    before = datetime.now(UTC) - timedelta(seconds=5)
    await store.put_bytes("a/b", b"12345")
    info = await store.stat("a/b")
    assert info is not None
    assert (info.key, info.size) == ("a/b", 5)
    assert before < info.modified < datetime.now(UTC) + timedelta(seconds=5)
    listed = [item async for item in store.list("a/")]
    assert [(item.key, item.size) for item in listed] == [("a/b", 5)]
    assert await store.stat("a") is None
    assert await store.stat("a/b/c") is None


async def test_missing_objects(store: ObjectStore, tmp_path: Path) -> None:
    assert await store.stat("none") is None
    with pytest.raises(errors.NotFound, match="none"):
        await store.get_bytes("none")
    with pytest.raises(errors.NotFound, match="none"):
        await store.get_file("none", tmp_path / "copy")
    for length in (None, 0, 3):
        with pytest.raises(errors.NotFound, match="none"):
            await anext(store.read("none", 0, length))
    await store.delete("none")
    await store.delete_prefix("none/")
    assert await keys(store, "none/") == []
    assert list(tmp_path.glob("*copy*")) == []


@pytest.mark.parametrize("size", [0, 1, 5 * MEBIBYTE, 12 * MEBIBYTE + 7])
async def test_files_of_every_size(store: ObjectStore, tmp_path: Path, size: int) -> None:
    source, copy = tmp_path / "source", tmp_path / "new" / "folder" / "copy"
    source.write_bytes(os.urandom(size))
    await store.put_file("files/one", source)
    await store.get_file("files/one", copy)
    assert copy.read_bytes() == source.read_bytes()
    assert list(copy.parent.iterdir()) == [copy]
    digest = hashlib.sha256()
    async for chunk in store.read("files/one"):
        assert 0 < len(chunk) <= MEBIBYTE
        digest.update(chunk)
    assert digest.hexdigest() == hashlib.sha256(source.read_bytes()).hexdigest()


async def test_get_file_replaces(store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "copy").write_bytes(b"what was there before, and is longer")
    await store.put_bytes("k", b"new")
    await store.get_file("k", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"new"


async def test_local_trouble_is_the_callers(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await store.put_file("k", tmp_path / "missing")
    with pytest.raises(OSError, match=r"directory|plain file"):
        await store.put_file("k", tmp_path)
    await store.put_bytes("k", b"data")
    (tmp_path / "plain").write_bytes(b"")
    with pytest.raises(OSError, match="plain"):
        await store.get_file("k", tmp_path / "plain" / "below")
    assert await store.get_bytes("k") == b"data"


async def test_ranges(store: ObjectStore) -> None:
    data = os.urandom(2 * MEBIBYTE + 100)
    await store.put_bytes("r", data)
    ranges = [(0, None), (0, 10), (5, 7), (MEBIBYTE - 1, 2), (len(data) - 3, None), (len(data) - 3, 100)]
    ranges += [(len(data), None), (len(data) + 5, 3), (7, 0), (100, 2 * MEBIBYTE)]
    for start, length in ranges:
        got = b"".join([chunk async for chunk in store.read("r", start, length)])
        assert got == (data[start:] if length is None else data[start : start + length]), (start, length)
    with pytest.raises(errors.InvalidArgument) as caught:
        await anext(store.read("r", -1, -2))
    assert [problem.field for problem in caught.value.problems] == ["start", "length"]


async def test_reading_may_end_early(store: ObjectStore) -> None:
    await store.put_bytes("r", os.urandom(4 * MEBIBYTE))
    for _ in range(30):
        async with aclosing(store.read("r")) as chunks:
            assert len(await anext(chunks)) > 0


async def test_listing_by_prefix(store: ObjectStore) -> None:
    names = ["a.txt", "a/1", "a/1-x", "a/10/x", "a/2/y/z", "ab", "b/1"]
    await asyncio.gather(*(store.put_bytes(name, b"") for name in names))
    assert await keys(store) == sorted(names)
    assert await keys(store, "a") == sorted(names[:-1])
    assert await keys(store, "a/") == sorted(names[1:5])
    assert await keys(store, "a/1") == ["a/1", "a/1-x", "a/10/x"]
    assert await keys(store, "a/2/") == ["a/2/y/z"]
    assert await keys(store, "c") == []
    async with aclosing(store.list()) as infos:
        await anext(infos)


async def test_a_long_listing_is_whole(store: ObjectStore) -> None:
    names = [f"many/{index // 100:02}/{index:04}" for index in range(1203)]
    for first in range(0, len(names), 100):
        await asyncio.gather(*(store.put_bytes(name, b"1") for name in names[first : first + 100]))
    assert await keys(store, "many/") == names
    await store.delete_prefix("many/")
    assert await keys(store) == []


async def test_deleting(store: ObjectStore) -> None:
    for name in ("t/1/a", "t/1/b/c/d", "t/10/a", "t2"):
        await store.put_bytes(name, b"x")
    await store.delete("t/1/b/c/d")
    assert await keys(store, "t/1/") == ["t/1/a"]
    await store.put_bytes("t/1/b/c/d", b"again")
    await store.delete_prefix("t/1/")
    assert await keys(store) == ["t/10/a", "t2"]
    for neighbour in ("t/1", "t", ""):
        with pytest.raises(errors.InvalidArgument, match="slash"):
            await store.delete_prefix(neighbour)
    await store.delete("t")
    await store.delete_prefix("t2/")
    assert await keys(store) == ["t/10/a", "t2"]


async def test_put_if_absent(store: ObjectStore) -> None:
    await store.put_bytes("once", b"first", if_absent=True)
    with pytest.raises(errors.AlreadyExists, match="once"):
        await store.put_bytes("once", b"second", if_absent=True)
    assert await store.get_bytes("once") == b"first"
    await store.delete("once")
    await store.put_bytes("once", b"third", if_absent=True)
    assert await keys(store) == ["once"]


async def test_one_of_many_is_first(store: ObjectStore) -> None:
    writes = [store.put_bytes("race", str(number).encode() * 1000, if_absent=True) for number in range(12)]
    results = await asyncio.gather(*writes, return_exceptions=True)
    winners = [number for number, result in enumerate(results) if result is None]
    assert len(winners) == 1
    assert all(isinstance(result, errors.AlreadyExists) for result in results if result is not None)
    assert await store.get_bytes("race") == str(winners[0]).encode() * 1000


BAD_KEYS = ["", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", "a/..", "a\0b", "a\nb", "a\\..\\b"]
BAD_KEYS += ["x" * 256, "/".join(["12345678"] * 120), "\ud800"]


@pytest.mark.parametrize("key", BAD_KEYS, ids=lambda key: ascii(key)[:20])
async def test_bad_keys_are_refused(store: ObjectStore, tmp_path: Path, key: str) -> None:
    local = tmp_path / "local"
    local.write_bytes(b"x")
    for operation in (
        store.put_bytes(key, b"x"),
        store.put_bytes(key, b"x", if_absent=True),
        store.put_file(key, local),
        store.get_bytes(key),
        store.get_file(key, tmp_path / "copy"),
        anext(store.read(key)),
        store.stat(key),
        store.delete(key),
    ):
        with pytest.raises(errors.InvalidArgument) as caught:
            await operation
        assert [problem.field for problem in caught.value.problems] == ["key"]
    assert await keys(store) == []


@pytest.mark.parametrize("prefix", ["/", "/a", "../", "a/../b/", "a//", "\0/"], ids=ascii)
async def test_bad_prefixes_are_refused(store: ObjectStore, prefix: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        await anext(store.list(prefix))
    with pytest.raises(errors.InvalidArgument):
        await store.delete_prefix(prefix)


async def test_readers_see_whole_versions_only(store: ObjectStore, request: pytest.FixtureRequest) -> None:
    if "juicefs" in request.node.name:
        pytest.skip("its gateway sends the length of one version with the bytes of another")
    versions = [bytes([number]) * (MEBIBYTE + number) for number in range(6)]
    await store.put_bytes("v", versions[0])
    done = asyncio.Event()

    async def write() -> None:
        for version in versions:
            await store.put_bytes("v", version)
        done.set()

    async def read() -> int:
        count = 0
        while not done.is_set():
            assert await store.get_bytes("v") in versions
            count += 1
        return count

    _, count = await asyncio.gather(write(), read())
    assert count > 0


async def test_a_cancelled_upload_leaves_all_or_nothing(store: ObjectStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(40 * MEBIBYTE))
    for patience in (0.0, 0.002, 0.02):
        upload = asyncio.ensure_future(store.put_file("big", source))
        await asyncio.wait([upload], timeout=patience)
        if upload.cancel():
            with pytest.raises(asyncio.CancelledError):
                await upload
            info = await store.stat("big")
            assert info is None or info.size == 40 * MEBIBYTE


@pytest.fixture(params=S3_STORES)
def server(request: pytest.FixtureRequest) -> S3Server:
    server: S3Server = request.getfixturevalue("seaweed_server" if request.param == "seaweedfs" else "juice_server")
    return server


async def test_presigned_addresses_work_without_credentials(server: S3Server) -> None:
    store = open_object_store(server.address())
    address = await store.presigned_put("pre/signed ü", timedelta(minutes=1))
    assert (await asyncio.to_thread(urllib3.request, "PUT", address, body=b"hello")).status == 200
    address = await store.presigned_get("pre/signed ü", timedelta(minutes=1))
    assert (await asyncio.to_thread(urllib3.request, "GET", address)).data == b"hello"
    with pytest.raises(errors.InvalidArgument, match="expires"):
        await store.presigned_get("k", timedelta(days=8))
    await store.close()


async def test_wrong_credentials_are_refused(server: S3Server) -> None:
    host = f"127.0.0.1:{server.port}/tunesmith"
    store = open_object_store(f"s3://test-access:wrong@{host}?secure=false")
    with pytest.raises(errors.PermissionDenied) as caught:
        await store.put_bytes("k", b"x")
    assert "wrong" not in str(caught.value)
    with pytest.raises(errors.PermissionDenied):
        await store.get_bytes("k")
    with pytest.raises(errors.PermissionDenied):
        await store.stat("k")
    with pytest.raises(errors.PermissionDenied):
        await store.prepare()
    await store.close()


async def test_a_missing_bucket_is_told_from_a_missing_object(server: S3Server) -> None:
    address = server.address().replace("/tunesmith/", "/other-bucket/")
    store = open_object_store(address)
    with pytest.raises(errors.FailedPrecondition, match="other-bucket"):
        await store.prepare()
    with pytest.raises(errors.FailedPrecondition):
        await store.get_bytes("k")
    making = open_object_store(address + "&create_bucket=true")
    await making.prepare()
    await making.prepare()
    await store.put_bytes("k", b"x")
    await store.close()
    await making.close()


async def test_two_prefixes_are_apart(server: S3Server) -> None:
    one, ten = open_object_store(server.address("apart/1")), open_object_store(server.address("apart/10"))
    await one.put_bytes("k", b"1")
    await ten.put_bytes("k", b"10")
    assert await keys(one) == await keys(ten) == ["k"]
    await one.delete_prefix("k/")
    assert await ten.get_bytes("k") == b"10"
    await one.close()
    await ten.close()


async def test_conditional_writes_are_found_out(
    seaweed_server: SeaweedServer, juice_server: JuiceServer, caplog: pytest.LogCaptureFixture
) -> None:
    from servicekit.objects.s3 import S3ObjectStore

    for server, honours in ((seaweed_server, True), (juice_server, False)):
        store = open_object_store(server.address())
        assert isinstance(store, S3ObjectStore)
        assert await store.conditional_writes() is honours
        assert await keys(store) == []
        assert ("If-None-Match" in caplog.text) is not honours
        await store.close()
