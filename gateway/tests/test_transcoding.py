"""The native API: paths, queries, bodies and errors, end to end."""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from servicekit.errors import (
    Aborted,
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    PermissionDenied,
    ResourceExhausted,
    TunesmithError,
    Unavailable,
)

SPEC = {"finetune": {"base_model": "m", "dataset": {"path": "/d"}, "language_model": {}}}


def problems(response: httpx.Response) -> dict[str, str]:
    """The problems of an error by field."""
    assert response.status_code == 400, response.text
    return {item["field"]: item["message"] for item in response.json()["error"]["problems"]}


async def test_get_by_path(gateway: Any) -> None:
    task = gateway.tasks.add()
    response = await gateway.client.get(f"/v1/tasks/{task.id}")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    document = response.json()["task"]
    assert document["id"] == task.id
    assert document["number"] == 7
    assert document["state"] == "STATE_RUNNING"
    assert document["create_time"] == "2026-01-02T03:04:05.678Z"
    assert document["depends_on"] == []
    assert "error" not in document


async def test_path_variables_are_decoded(gateway: Any) -> None:
    response = await gateway.client.get("/v1/tasks/a%2Fb%20%E4%BB%BB")
    assert response.status_code == 404
    assert gateway.tasks.requests[-1].task_id == "a/b 任"


async def test_query_parameters(gateway: Any) -> None:
    query = (
        "page_size=5&states=STATE_RUNNING&states=failed&kinds=1&labels.team.x=red&labels.surface=a%20b"
        "&orderBy=name&ascending=true&nameContains=%E4%BB%BB%E5%8A%A1&with_total=true"
    )
    response = await gateway.client.get(f"/v1/tasks?{query}")
    assert response.status_code == 200
    request = gateway.tasks.requests[-1]
    assert request.page_size == 5
    assert list(request.states) == [2, 6]
    assert list(request.kinds) == [1]
    assert dict(request.labels) == {"team.x": "red", "surface": "a b"}
    assert request.order_by == 3
    assert request.ascending
    assert request.name_contains == "任务"


async def test_query_problems_are_listed_together(gateway: Any) -> None:
    query = (
        "page_size=many&states=RUN&pagesize=3&ascending=yes&offset=99999999999&name_contains=a&nameContains=b&labels=x"
    )
    found = problems(await gateway.client.get(f"/v1/tasks?{query}"))
    assert set(found) == {"page_size", "states", "pagesize", "ascending", "offset", "nameContains", "labels"}
    assert "did you mean page_size?" in found["pagesize"]
    assert "STATE_RUNNING" in found["states"]
    assert gateway.tasks.requests == []


async def test_create_from_body(gateway: Any) -> None:
    body = {"name": "n", "spec": {"finetune": {**SPEC["finetune"], "training": {"learningRate": "0.5", "maxSteps": 3}}}}
    response = await gateway.client.post("/v1/tasks", json=body)
    assert response.status_code == 200, response.text
    request = gateway.tasks.requests[-1]
    assert request.spec.finetune.training.learning_rate == 0.5
    assert request.spec.finetune.training.max_steps == 3
    assert len(request.request_id) == 32, "a call that is tried again must not make a second task"


async def test_body_problems_are_listed_together(gateway: Any) -> None:
    training = {"learning_rat": 1, "max_steps": 1.5, "seed": "x", "fp16": 1, "save_strategy": "often"}
    finetune = {
        "base_model": 3,
        "dataset": {"path": "/d", "uri": "s3://x"},
        "training": training,
        "language_model": {"lora": {"target_modules": ["a", 4], "r": 5_000_000_000}},
    }
    body = {"name": ["n"], "spec": {"finetune": finetune}, "depends_on": "x", "labels": {"a": 1}, "unknown": 1}
    found = problems(await gateway.client.post("/v1/tasks", json=body))
    prefix = "spec.finetune"
    assert set(found) == {
        "name",
        f"{prefix}.base_model",
        f"{prefix}.dataset.uri",
        f"{prefix}.training.learning_rat",
        f"{prefix}.training.max_steps",
        f"{prefix}.training.seed",
        f"{prefix}.training.fp16",
        f"{prefix}.training.save_strategy",
        f"{prefix}.language_model.lora.target_modules[1]",
        f"{prefix}.language_model.lora.r",
        "depends_on",
        "labels.a",
        "unknown",
    }
    assert "did you mean learning_rate?" in found[f"{prefix}.training.learning_rat"]


async def test_problems_of_the_service_pass_through(gateway: Any) -> None:
    body = {"spec": {"finetune": {**SPEC["finetune"], "training": {"learning_rate": "NaN", "num_train_epochs": -1}}}}
    found = problems(await gateway.client.post("/v1/tasks", json=body))
    prefix = "spec.finetune.training"
    assert set(found) >= {"name", f"{prefix}.learning_rate", f"{prefix}.num_train_epochs"}


@pytest.mark.parametrize("body", [b"{", b'{"name": NaN}', b"[]", b'"x"', b"\xff", b"null"])
async def test_body_that_is_no_object(gateway: Any, body: bytes) -> None:
    response = await gateway.client.post("/v1/tasks", content=body)
    assert response.status_code == 400
    assert response.json()["error"]["status"] == "INVALID_ARGUMENT"


async def test_custom_verb_takes_path_and_body(gateway: Any) -> None:
    task = gateway.tasks.add()
    response = await gateway.client.post(f"/v1/tasks/{task.id}:stop", json={"discard": True})
    assert response.status_code == 200
    assert gateway.tasks.requests[-1].task_id == task.id
    assert gateway.tasks.requests[-1].discard
    assert (await gateway.client.post(f"/v1/tasks/{task.id}:stop")).status_code == 200, "the body may be left out"


async def test_verb_on_a_collection_and_other_services(gateway: Any) -> None:
    response = await gateway.client.post("/v1/datasets:validate", json={"dataset": {"path": "/d"}})
    assert response.json() == {"valid": True, "rows": 3, "format": "", "problems": []}
    assert (await gateway.client.get("/v1/devices")).json()["devices"][0]["cores"] == 2
    assert (await gateway.client.get("/v1/quota")).json()["quota"]["monthly_allowance"] == -1
    assert (await gateway.client.get("/v1/export-formats")).json() == {"formats": [], "templates": []}


async def test_a_body_may_not_contradict_the_path(gateway: Any) -> None:
    task = gateway.tasks.add()
    response = await gateway.client.post(f"/v1/tasks/{task.id}:stop", json={"task_id": "another"})
    assert set(problems(response)) == {"task_id"}
    response = await gateway.client.post(f"/v1/tasks/{task.id}:stop?discard=true", json={})
    assert set(problems(response)) == {"discard"}


async def test_numbers_that_json_has_no_form_for(gateway: Any) -> None:
    response = await gateway.client.get(f"/v1/tasks/{'a' * 26}/metrics")
    assert response.json()["series"][0] == {"name": "loss", "steps": [1, 2], "values": [2.5, "NaN"]}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (FailedPrecondition("x", reason="ENDED"), 400),
        (AlreadyExists("x"), 409),
        (Aborted("x"), 409),
        (PermissionDenied("x"), 403),
        (ResourceExhausted("x"), 429),
        (ResourceExhausted("x", metadata={"retry_after_seconds": "7"}), 429),
        (DeadlineExceeded("x"), 504),
        (Unavailable("x"), 503),
        (Internal("x", metadata={"id": "5"}), 500),
    ],
)
async def test_errors_of_services(gateway: Any, error: TunesmithError, status: int) -> None:
    gateway.tasks.error = error
    response = await gateway.client.get("/v1/tasks")
    assert response.status_code == status
    document = response.json()["error"]
    assert document["code"] == status
    assert document["status"] == error.code.name
    assert document["reason"] == error.reason
    assert document["message"] == "x"
    assert document["metadata"] == error.metadata
    assert document["details"][0]["reason"] == error.reason
    assert ("retry-after" in response.headers) == (status == 503 or "retry_after_seconds" in error.metadata)


async def test_what_is_not_implemented(gateway: Any) -> None:
    body = {"spec": {"source_task_id": "t"}}
    response = await gateway.client.post("/v1/evaluations", json=body)
    assert response.status_code == 501
    assert response.json()["error"]["status"] == "UNIMPLEMENTED"
    assert (await gateway.client.get("/v1/templates")).status_code == 501, "the service does not have it at all"


async def test_tokens_are_the_services_business(gateway: Any) -> None:
    expired = gateway.token(lifetime=timedelta(seconds=-1))
    cases = {None: "TOKEN_MISSING", "Bearer x": "TOKEN_INVALID", f"Bearer {expired}": "TOKEN_EXPIRED"}
    for header, reason in cases.items():
        async with httpx.AsyncClient(base_url=gateway.url, trust_env=False) as client:
            response = await client.get("/v1/tasks", headers={"authorization": header} if header else {})
        assert response.status_code == 401
        assert response.json()["error"]["reason"] == reason
        assert response.headers["www-authenticate"] == "Bearer"


async def test_a_header_that_is_no_text_is_a_bad_token(gateway: Any) -> None:
    response = await gateway.client.get("/v1/tasks", headers={"authorization": b"Bearer \xe4"})
    assert response.status_code == 401


async def test_the_token_and_the_request_id_are_passed_on(gateway: Any) -> None:
    response = await gateway.client.get("/v1/tasks", headers={"x-request-id": "abc-1", "traceparent": "00-a-b-01"})
    assert response.headers["x-request-id"] == "abc-1"
    assert gateway.tasks.metadata["x-request-id"] == "abc-1"
    assert gateway.tasks.metadata["traceparent"] == "00-a-b-01"
    assert gateway.tasks.metadata["authorization"].startswith("Bearer ")
    response = await gateway.client.get("/v1/tasks", headers={"x-request-id": "bad id"})
    assert response.headers["x-request-id"] not in ("", "bad id")


async def test_unknown_routes_and_methods(gateway: Any) -> None:
    response = await gateway.client.get("/v1/nothing")
    assert response.status_code == 404
    assert response.json()["error"]["reason"] == "ROUTE_NOT_FOUND"
    response = await gateway.client.put("/v1/tasks")
    assert response.status_code == 405
    assert response.headers["allow"] == "GET, POST"
    response = await gateway.client.get("/nothing")
    assert response.status_code == 404
    assert response.json()["error"]["reason"] == "ROUTE_NOT_FOUND"


async def test_large_bodies_are_refused(start_gateway: Callable[..., Any], tmp_path: Path) -> None:
    async def chunks() -> Any:
        for _ in range(4):
            yield b" " * 1024

    async with start_gateway(tmp_path, max_body_bytes=2048) as gateway:
        for content in (b" " * 4096, chunks()):
            response = await gateway.client.post("/v1/tasks", content=content)
            assert response.status_code == 413
            assert response.json()["error"]["reason"] == "BODY_TOO_LARGE"


async def test_a_slow_service_is_given_up(start_gateway: Callable[..., Any], tmp_path: Path) -> None:
    async with start_gateway(tmp_path, request_seconds=0.2) as gateway:
        gateway.tasks.silent = True
        response = await gateway.client.get(f"/v1/tasks/{'a' * 26}")
        assert response.status_code == 504


async def test_unreachable_service(start_gateway: Callable[..., Any], tmp_path: Path) -> None:
    async with start_gateway(tmp_path, eval_target="127.0.0.1:1") as gateway:
        response = await gateway.client.get("/v1/scores")
        assert response.status_code == 503
        assert json.loads(response.content)["error"]["status"] == "UNAVAILABLE"
