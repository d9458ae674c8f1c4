"""Files of forms on their way through: few at a time, space left on the disk, nothing left behind."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.guide.spool import Spool
from gateway.settings import GatewaySettings
from gateway.tests.conftest import Gateway
from servicekit import spooling
from servicekit.errors import ResourceExhausted
from tests.support.waiting import eventually

PATH = "/api/training/datasets/upload"
HEAD = b'--b\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n{}'
END = b"\r\n--b--\r\n"
FORM = "multipart/form-data; boundary=b"


def spooled(directory: Path) -> list[str]:
    """The files below a directory that this process has open, the gateway with it, though nobody sees them."""
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            links.append(str(descriptor.readlink()))
    return [link for link in links if link.startswith(str(directory))]


@asynccontextmanager
async def slow_form(gateway: Gateway, user: str = "ada") -> AsyncIterator[asyncio.StreamReader]:
    """A form whose file has begun and does not end; the connection breaks with the block."""
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST {PATH} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {gateway.token(user)}\r\n"
    writer.write(f"{head}content-type: {FORM}\r\ncontent-length: 100000\r\n\r\n".encode() + HEAD + b"x" * 500)
    await writer.drain()
    try:
        yield reader
    finally:
        writer.close()


async def upload(gateway: Gateway, user: str = "ada", body: Any = HEAD + END) -> httpx.Response:
    headers = {"content-type": FORM, "authorization": f"Bearer {gateway.token(user)}"}
    return await gateway.client.post(PATH, content=body, headers=headers)


def assert_turned_away(response: httpx.Response, says: str) -> None:
    assert (response.status_code, list(response.json())) == (429, ["detail"])
    assert says in response.json()["detail"]
    assert int(response.headers["retry-after"]) > 0


async def test_only_so_many_at_once(tmp_path: Path, start_gateway: Any) -> None:
    forms = tmp_path / "forms"
    async with start_gateway(tmp_path, upload_dir=forms, uploads_at_once=2, uploads_per_user=1) as gateway:
        async with slow_form(gateway, "ada"):
            await eventually(lambda: len(spooled(forms)) == 1)
            assert_turned_away(await upload(gateway, "ada"), "for one user")
            assert (await upload(gateway, "bob")).status_code == 200
            async with slow_form(gateway, "bob"):
                await eventually(lambda: len(spooled(forms)) == 2)
                assert_turned_away(await upload(gateway, "carol"), "the most at once")
        await eventually(lambda: not spooled(forms))
        for user in ("ada", "bob", "carol"):
            assert (await upload(gateway, user)).status_code == 200


async def test_a_large_form_that_is_turned_away_is_told_why(tmp_path: Path, start_gateway: Any) -> None:
    async with (
        start_gateway(tmp_path, upload_dir=tmp_path / "forms", uploads_per_user=1) as gateway,
        slow_form(gateway),
    ):
        await eventually(lambda: spooled(tmp_path / "forms"))
        assert_turned_away(await upload(gateway, body=HEAD + b"x" * 3_000_000 + END), "for one user")


async def test_a_client_that_goes_away_leaves_nothing(tmp_path: Path, start_gateway: Any) -> None:
    """Nobody sees the file meanwhile either: whatever ends the gateway, the system removes it."""
    forms = tmp_path / "forms"
    async with start_gateway(tmp_path, upload_dir=forms) as gateway:
        async with slow_form(gateway):
            await eventually(lambda: spooled(forms))
            assert list(forms.iterdir()) == []
        await eventually(lambda: not spooled(forms))
        assert not gateway.datasets.headers


async def test_a_form_that_pauses_for_long_leaves_nothing(tmp_path: Path, start_gateway: Any) -> None:
    forms = tmp_path / "forms"
    async with start_gateway(tmp_path, upload_dir=forms, request_seconds=0.2) as gateway, slow_form(gateway) as reader:
        async with asyncio.timeout(10):
            assert (await reader.readline()).split()[1] == b"504"
        await eventually(lambda: not spooled(forms))


def assert_no_space(response: httpx.Response) -> None:
    assert (response.status_code, list(response.json())) == (507, ["detail"])
    assert "disk space" in response.json()["detail"]


async def test_a_form_that_does_not_fit_is_507(
    tmp_path: Path, start_gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start_gateway(tmp_path, upload_dir=tmp_path / "forms") as gateway:
        with monkeypatch.context() as patch:
            patch.setattr(spooling, "RESERVE_BYTES", 1 << 62)
            assert_no_space(await upload(gateway))
        assert (await upload(gateway)).status_code == 200


async def test_a_disk_that_fills_while_a_form_comes_is_507(
    tmp_path: Path, start_gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    forms = tmp_path / "forms"

    async def body() -> AsyncIterator[bytes]:
        yield HEAD
        await eventually(lambda: spooled(forms))
        monkeypatch.setattr(spooling, "RESERVE_BYTES", 1 << 62)
        yield b"x" * 10_000
        yield END

    async with start_gateway(tmp_path, upload_dir=forms) as gateway:
        assert_no_space(await upload(gateway, body=body()))
        assert not spooled(forms)
        assert not gateway.datasets.headers


def test_the_reserve_stays_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "file").open("xb", buffering=0) as file:
        spooling.append(file, b"x" * 1000, tmp_path)
        monkeypatch.setattr(spooling, "RESERVE_BYTES", 1 << 62)
        with pytest.raises(ResourceExhausted) as caught:
            spooling.append(file, b"x", tmp_path)
    assert caught.value.reason == "DISK_FULL"
    assert (tmp_path / "file").stat().st_size == 1000


def test_what_a_killed_gateway_left_is_cleared(tmp_path: Path) -> None:
    forms = tmp_path / "forms"
    settings = GatewaySettings(port=0, upload_dir=forms)
    Spool(settings).prepare()
    old, new, other = (forms / name for name in ("form-old", "form-new", "other"))
    for path in (old, new, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (0, 0))
    Spool(settings).prepare()
    assert sorted(path.name for path in forms.iterdir()) == ["form-new", "other"]
