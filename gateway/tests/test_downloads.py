"""Files over HTTP: whole, in ranges, resumed, broken off; reports that can do nothing but be read (F33)."""

import asyncio
import hashlib
from typing import Any

import httpx
import pytest

from gateway.tests.conftest import Gateway
from gateway.tests.model_services import PIECE

CONTENT = bytes(range(256)) * 20
ETAG = f'"{hashlib.sha256(CONTENT).hexdigest()}"'
NAME = "merged_model-Q8_0.gguf"
PATH = f"/v1/exports/e/artifacts/{NAME}"


@pytest.fixture(autouse=True)
def artifacts(gateway: Gateway) -> None:
    gateway.exports.artifacts = {NAME: CONTENT, "adapter.zip": b"PK", "empty.bin": b""}


async def test_a_whole_file(gateway: Gateway) -> None:
    response = await gateway.client.get(PATH)
    assert (response.status_code, response.content) == (200, CONTENT)
    headers = response.headers
    assert (headers["content-length"], headers["accept-ranges"], headers["etag"]) == (str(len(CONTENT)), "bytes", ETAG)
    assert headers["content-type"] == "application/octet-stream"
    assert headers["content-disposition"] == f'attachment; filename="{NAME}"'
    assert (await gateway.client.get("/v1/exports/e/artifacts/adapter.zip")).headers[
        "content-type"
    ] == "application/zip"
    empty = await gateway.client.get("/v1/exports/e/artifacts/empty.bin")
    assert (empty.status_code, empty.content, empty.headers["content-length"]) == (200, b"", "0")


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-199", 100, 200),
        (f"bytes={PIECE}-", PIECE, len(CONTENT)),
        ("bytes=-100", len(CONTENT) - 100, len(CONTENT)),
        ("bytes=-999999", 0, len(CONTENT)),
        ("bytes=5000-999999", 5000, len(CONTENT)),
    ],
)
async def test_a_range(gateway: Gateway, asked: str, start: int, end: int) -> None:
    response = await gateway.client.get(PATH, headers={"range": asked})
    assert (response.status_code, response.content) == (206, CONTENT[start:end])
    assert response.headers["content-range"] == f"bytes {start}-{end - 1}/{len(CONTENT)}"
    assert response.headers["content-length"] == str(end - start)
    assert gateway.exports.requests[-1].offset == start  # type: ignore[attr-defined]


@pytest.mark.parametrize("asked", [f"bytes={len(CONTENT)}-", "bytes=999999-", "bytes=-0"])
async def test_a_range_that_is_not_there(gateway: Gateway, asked: str) -> None:
    response = await gateway.client.get(PATH, headers={"range": asked})
    assert response.status_code == 416
    assert response.headers["content-range"] == f"bytes */{len(CONTENT)}"
    assert response.json()["error"]["reason"] == "RANGE_NOT_SATISFIABLE"
    assert gateway.exports.requests == []


@pytest.mark.parametrize("asked", ["bytes=0-1,5-6", "bytes=9-3", "lines=1-2", "bytes=", "bytes=a-b"])
async def test_what_is_no_single_range_gets_the_whole(gateway: Gateway, asked: str) -> None:
    response = await gateway.client.get(PATH, headers={"range": asked})
    assert (response.status_code, response.content) == (200, CONTENT)


@pytest.mark.parametrize(("etag", "status"), [(ETAG, 206), ('"another"', 200), (f"W/{ETAG}", 200)])
async def test_a_resume_of_another_file_starts_anew(gateway: Gateway, etag: str, status: int) -> None:
    response = await gateway.client.get(PATH, headers={"range": "bytes=10-", "if-range": etag})
    assert response.status_code == status
    assert response.content == (CONTENT[10:] if status == 206 else CONTENT)


async def test_head_tells_without_sending(gateway: Gateway) -> None:
    response = await gateway.client.head(PATH, headers={"range": "bytes=-10"})
    assert (response.status_code, response.content) == (206, b"")
    assert (response.headers["content-length"], response.headers["etag"]) == ("10", ETAG)
    assert gateway.exports.requests == []


async def test_names_that_are_not_there(gateway: Gateway) -> None:
    response = await gateway.client.get("/v1/exports/e/artifacts/other")
    assert response.status_code == 404
    assert NAME in response.json()["error"]["message"]
    gateway.exports.artifacts = {}
    assert "once it is completed" in (await gateway.client.get(PATH)).json()["error"]["message"]
    response = await gateway.client.post(PATH)
    assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD")
    response = await gateway.client.get(PATH, headers={"authorization": "Bearer wrong"})
    assert response.status_code == 401


async def test_a_name_in_any_language(gateway: Gateway) -> None:
    gateway.exports.artifacts = {'模型 "1".gguf': CONTENT}
    response = await gateway.client.get("/v1/exports/e/artifacts/%E6%A8%A1%E5%9E%8B%20%221%22.gguf")
    assert response.content == CONTENT
    disposition = response.headers["content-disposition"]
    assert disposition.startswith("attachment; filename=\"__ _1_.gguf\"; filename*=UTF-8''%E6%A8%A1")


@pytest.mark.parametrize("path", ["templates/chat.jinja", "templates%2Fchat.jinja"])
async def test_a_file_in_a_folder(gateway: Gateway, path: str) -> None:
    gateway.exports.artifacts = {"templates/chat.jinja": CONTENT}
    response = await gateway.client.get(f"/v1/exports/e/artifacts/{path}")
    assert (response.status_code, response.content) == (200, CONTENT)
    assert response.headers["content-disposition"] == 'attachment; filename="chat.jinja"'


async def test_a_download_that_breaks_off_breaks_the_connection(gateway: Gateway) -> None:
    gateway.exports.breaks_after = 2
    with pytest.raises(httpx.RemoteProtocolError):
        await gateway.client.get(PATH)


@pytest.mark.parametrize("asked", ["", "bytes=10-", "bytes=-10"])
async def test_a_file_that_turns_out_damaged_at_its_end_is_never_complete(gateway: Gateway, asked: str) -> None:
    gateway.exports.damaged = True
    with pytest.raises(httpx.RemoteProtocolError):
        await gateway.client.get(PATH, headers={"range": asked} if asked else {})
    part = await gateway.client.get(PATH, headers={"range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, CONTENT[10:20])


async def test_leaving_ends_the_download(gateway: Gateway) -> None:
    gateway.exports.breaks_after, gateway.exports.stalls = 1, True
    async with gateway.client.stream("GET", PATH) as response:
        assert await anext(response.aiter_bytes())
    await asyncio.wait_for(gateway.exports.cancelled.wait(), 5)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("report.json", "application/json"),
        ("report.csv", "text/csv; charset=utf-8"),
        ("report.html", "text/html; charset=utf-8"),
        ("samples.csv", "text/csv; charset=utf-8"),
    ],
)
async def test_a_report(gateway: Gateway, name: str, kind: str) -> None:
    gateway.evaluations.reports[name] = CONTENT
    path = f"/v1/evaluations/e/report/{name}"
    response = await gateway.client.get(path)
    assert (response.status_code, response.content, response.headers["content-type"]) == (200, CONTENT, kind)
    assert response.headers["content-length"] == str(len(CONTENT))
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    assert ("sandbox" in policy) == (name == "report.html")
    head = await gateway.client.head(path)
    assert (head.content, head.headers["content-length"]) == (b"", str(len(CONTENT)))


@pytest.mark.parametrize("name", ["report.html", "report.exe"])
async def test_a_report_that_is_not_there(gateway: Gateway, name: str) -> None:
    response = await gateway.client.get(f"/v1/evaluations/e/report/{name}")
    assert (response.status_code, response.json()["error"]["status"]) == (404, "NOT_FOUND")


async def test_files_are_described(gateway: Gateway) -> None:
    paths: dict[str, Any] = (await gateway.client.get("/openapi.json")).json()["paths"]
    artifact = paths["/v1/exports/{task_id}/artifacts/{name}"]
    assert set(artifact) == {"get", "head"}
    assert {"200", "206", "416"} <= set(artifact["get"]["responses"])
    assert "/v1/evaluations/{task_id}/report/{name}" in paths
    zipped = paths["/api/training/download/{task_id}"]["get"]["responses"]["200"]["content"]
    assert list(zipped) == ["application/zip"]
