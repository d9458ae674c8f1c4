"""POST /v1/datasets: a file as the body goes to the dataset service as it comes."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.tests.conftest import Gateway
from servicekit.errors import InvalidArgument, Problem
from tests.support.waiting import eventually


async def test_the_query_is_the_header_and_the_body_the_file(gateway: Gateway) -> None:
    content = bytes(range(256)) * 20_000
    query = {"name": "mine", "type": "llm", "file_name": "数据.jsonl", "sha256": hashlib.sha256(content).hexdigest()}
    response = await gateway.client.post("/v1/datasets", params=query, content=content)
    assert response.status_code == 200, response.text
    assert response.json()["dataset"]["size"] == len(content)
    (header,) = gateway.datasets.headers
    assert (header.name, header.type, header.file_name) == ("mine", "llm", "数据.jsonl")
    assert header.sha256 == query["sha256"]
    assert gateway.datasets.contents == [content]
    assert gateway.datasets.largest_part <= 1024 * 1024
    assert gateway.datasets.metadata["authorization"].startswith("Bearer ")


async def test_it_is_larger_than_other_bodies_may_be_and_not_held(tmp_path: Path, start_gateway: Any) -> None:
    async with start_gateway(tmp_path, max_body_bytes=1024) as gateway:
        arrived = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield b"x" * 100_000

            async def has_begun() -> bool:
                return gateway.datasets.largest_part > 0

            await eventually(has_begun)
            arrived.set()
            yield b"y" * 100_000

        response = await gateway.client.post("/v1/datasets", params={"file_name": "a.txt"}, content=body())
        assert response.status_code == 200
        assert arrived.is_set(), "the service had the first part before the last was sent"
        assert gateway.datasets.contents == [b"x" * 100_000 + b"y" * 100_000]


async def test_problems_are_named_as_in_the_query(gateway: Gateway) -> None:
    response = await gateway.client.post("/v1/datasets", params={"file_nam": "a"}, content=b"x")
    assert response.status_code == 400
    assert response.json()["error"]["problems"][0]["field"] == "file_nam"
    gateway.datasets.error = InvalidArgument(problems=[Problem("header.file_name", "has no ending")])
    response = await gateway.client.post("/v1/datasets", params={"file_name": "a"}, content=b"x")
    error = response.json()["error"]
    assert (response.status_code, error["problems"]) == (400, [{"field": "file_name", "message": "has no ending"}])


@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=x", "application/x-www-form-urlencoded"])
async def test_a_form_is_not_a_file(gateway: Gateway, kind: str) -> None:
    headers = {"content-type": kind}
    response = await gateway.client.post("/v1/datasets", params={"file_name": "a.txt"}, content=b"x", headers=headers)
    assert (response.status_code, response.json()["error"]["reason"]) == (400, "BODY_IS_A_FORM")
    assert not gateway.datasets.headers


async def test_an_upload_that_is_cut_off_is_not_kept(gateway: Gateway) -> None:
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /v1/datasets?file_name=a.txt HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {gateway.token()}\r\n"
    writer.write(f"{head}content-length: 1000\r\n\r\n".encode() + b"x" * 500)
    await writer.drain()

    async def has_begun() -> bool:
        return gateway.datasets.largest_part == 500

    await eventually(has_begun)
    writer.close()
    response = await gateway.client.post("/v1/datasets", params={"file_name": "b.txt"}, content=b"x")
    assert response.status_code == 200
    assert [header.file_name for header in gateway.datasets.headers] == ["b.txt"]


async def test_an_upload_that_pauses_for_long_is_given_up(tmp_path: Path, start_gateway: Any) -> None:
    async with start_gateway(tmp_path, request_seconds=0.2) as gateway:
        host, _, port = gateway.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        token = gateway.token()
        head = f"POST /v1/datasets?file_name=a.txt HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\n"
        writer.write(f"{head}content-length: 1000\r\n\r\n".encode() + b"x" * 500)
        async with asyncio.timeout(10):
            assert (await reader.readline()).split()[1] == b"504"
        writer.close()
        assert not gateway.datasets.headers


async def test_it_needs_a_token_and_the_other_methods_stay(gateway: Gateway) -> None:
    response = await gateway.client.put("/v1/datasets")
    assert (response.status_code, response.headers["allow"]) == (405, "GET, POST")
    assert (await gateway.client.get("/v1/datasets")).json()["datasets"] == []
    headers = {"authorization": "Bearer x"}
    response = await gateway.client.post("/v1/datasets", params={"file_name": "a.txt"}, content=b"x", headers=headers)
    assert response.status_code == 401


async def test_it_is_described(gateway: Gateway) -> None:
    document = (await gateway.client.get("/openapi.json")).json()
    operation = document["paths"]["/v1/datasets"]["post"]
    assert {item["name"] for item in operation["parameters"]} == {"name", "type", "file_name", "sha256"}
    assert list(operation["requestBody"]["content"]) == ["application/octet-stream"]
