"""What every request passes: health, hosts, origins, headers, the access log, the description, the process itself."""

import asyncio
import io
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)

from gateway.access_log import AccessLog
from gateway.app import Gateway
from gateway.http import Request, Send
from gateway.native.docs import as_openapi_30
from gateway.setup import describe
from tests.support.ports import free_port
from tests.support.waiting import eventually


async def test_healthz(gateway: Any) -> None:
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False) as client:
        response = await client.get("/healthz", headers={"host": "10.1.2.3:9"})
        assert response.status_code == 200, "no token, and any host"
        assert response.json()["status"] == "SERVING"
        assert set(response.json()["services"]) == {"task", "trainer", "eval", "export"}
        await gateway.services.serving(False)

        async def failing() -> bool:
            return (await client.get("/healthz")).status_code == 503

        await eventually(failing, 5)
        assert (await client.get("/healthz")).json()["failing"] == ["task", "trainer", "eval", "export"]


async def test_healthz_names_the_service_that_is_away(start_gateway: Callable[..., Any], tmp_path: Path) -> None:
    async with start_gateway(tmp_path, export_target="127.0.0.1:1") as gateway:
        response = await gateway.client.get("/healthz")
        assert response.status_code == 503
        assert response.json()["failing"] == ["export"]
        assert "UNAVAILABLE" in response.json()["services"]["export"]


async def test_other_hosts_are_refused(gateway: Any, start_gateway: Callable[..., Any], tmp_path: Path) -> None:
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost:x", ""):
        response = await gateway.client.get("/v1/tasks", headers={"host": host})
        assert response.status_code == 421, host
    for host in ("localhost", "LOCALHOST:99", "[::1]:8000"):
        assert (await gateway.client.get("/v1/tasks", headers={"host": host})).status_code == 200, host
    (tmp_path / "other").mkdir()
    async with start_gateway(tmp_path / "other", allowed_hosts=("tune.example",)) as other:
        assert (await other.client.get("/v1/tasks", headers={"host": "tune.example"})).status_code == 200


async def test_other_origins_are_refused(gateway: Any, start_gateway: Callable[..., Any], tmp_path: Path) -> None:
    preflight = {"origin": "https://a.example", "access-control-request-method": "GET"}
    response = await gateway.client.options("/v1/tasks", headers=preflight)
    assert not [name for name in response.headers if name.startswith("access-control")]
    (tmp_path / "other").mkdir()
    async with start_gateway(tmp_path / "other", cors_origins=("https://a.example",)) as other:
        response = await other.client.options("/v1/tasks", headers=preflight)
        assert response.headers["access-control-allow-origin"] == "https://a.example"
        response = await other.client.get("/v1/tasks", headers={"origin": "https://b.example"})
        assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("path", ["/v1/tasks", "/v1/none", "/finetuning/getTaskList", "/healthz", "/docs", "/none"])
async def test_security_headers(gateway: Any, path: str) -> None:
    headers = (await gateway.client.get(path)).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert len(headers["x-request-id"]) == 16
    assert "server" not in headers


async def test_docs_come_from_here_alone(gateway: Any) -> None:
    page = await gateway.client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "script-src 'self';" in page.headers["content-security-policy"]
    assert "http" not in page.text.replace("http-equiv", ""), "nothing from elsewhere"
    for path in ("swagger-ui.css", "swagger-ui-bundle.js", "start.js", "favicon-32x32.png"):
        assert f"/docs/{path}" in page.text
        assert (await gateway.client.get(f"/docs/{path}")).status_code == 200
    assert (await gateway.client.get("/docs/openapi.json")).json()["openapi"] == "3.0.3"
    assert (await gateway.client.get("/openapi.json")).json() == describe()


def references(value: Any) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(references, value)) if value else set()
    if not isinstance(value, dict):
        return set()
    own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
    return own.union(*map(references, value.values())) if value else own


def test_openapi_says_what_the_contracts_say() -> None:
    document = describe()
    schemas = document["components"]["schemas"]
    assert {reference.removeprefix("#/components/schemas/") for reference in references(document)} <= set(schemas)
    ids = [item["operationId"] for path in document["paths"].values() for item in path.values()]
    assert len(ids) == len(set(ids)) > 30
    training = schemas["tunesmith.task.v1.TrainingParameters"]["properties"]
    assert training["learning_rate"]["exclusiveMinimum"] == 0
    assert training["learning_rate"]["maximum"] == 1
    assert training["learning_rate"]["description"].startswith("Peak learning rate.")
    assert "STATE_PENDING" in schemas["tunesmith.task.v1.State"]["enum"]
    watch = document["paths"]["/v1/tasks/{task_id}:watch"]["get"]
    assert set(watch["responses"]["200"]["content"]) == {"text/event-stream", "application/x-ndjson"}
    assert {item["name"] for item in watch["parameters"]} == {"task_id", "cursor", "Last-Event-ID"}
    stop = document["paths"]["/v1/tasks/{task_id}:stop"]["post"]
    body = stop["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["properties"]) == {"discard"}
    assert not stop["requestBody"]["required"]
    create = schemas["FinetuningCreate"]["properties"]["trainingArgs"]["properties"]
    assert create["warmup_steps"]["default"] == 100
    assert create["epochs"]["description"] == "Same as num_train_epochs."


def test_every_path_parameter_is_described() -> None:
    for path, operations in describe()["paths"].items():
        for operation in operations.values():
            named = {item["name"] for item in operation["parameters"] if item["in"] == "path"}
            assert named == {part.partition("}")[0] for part in path.split("{")[1:]}


def test_openapi_30_for_the_page() -> None:
    bounds = {"type": ["integer", "null"], "exclusiveMinimum": 0, "examples": [1]}
    wanted = {"type": "integer", "nullable": True, "minimum": 0, "exclusiveMinimum": True, "example": 1}
    assert as_openapi_30({"x": bounds}) == {"openapi": "3.0.3", "x": wanted}


async def test_the_access_log_has_no_secrets() -> None:
    stream = io.StringIO()
    log = AccessLog(stream)
    scope = {"method": "GET", "raw_path": b"/v1/tasks\x1b", "query_string": b"token=secret"}
    log.add(Request(scope, None, {b"authorization": b"Bearer secret"}, "id-1", 200), 0.0123)  # type: ignore[arg-type]
    log.flush()
    line = stream.getvalue()
    assert line.endswith(" INFO gateway.access: GET '/v1/tasks\\x1b' 200 12.3ms id-1\n")
    assert "secret" not in line


async def test_what_fails_unexpectedly_is_hidden_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(request: Request, send: Send) -> None:
        raise ZeroDivisionError("secret detail")

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    app = Gateway(broken, broken, broken, (), None)  # type: ignore[arg-type]
    headers = [(b"host", b"localhost")]
    scope = {"type": "http", "method": "GET", "path": "/v1/x", "raw_path": b"/v1/x", "headers": headers}
    with caplog.at_level(logging.ERROR):
        await app(scope, None, send)  # type: ignore[arg-type]
    assert sent[0]["status"] == 500
    body = sent[1]["body"].decode()
    assert "secret" not in body
    assert caplog.records[0].args[2] in body  # type: ignore[index]


class Collector(TraceServiceServicer):
    """Takes spans as an OpenTelemetry collector does."""

    def __init__(self) -> None:
        self.spans: list[Any] = []

    async def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_spans:
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        return ExportTraceServiceResponse()


@pytest.fixture
async def collector() -> AsyncIterator[tuple[Collector, str]]:
    server, spans = grpc.aio.server(), Collector()
    add_TraceServiceServicer_to_server(spans, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield spans, f"http://127.0.0.1:{port}"
    await server.stop(None)


async def start_process(services_port: int, port: int, endpoint: str) -> asyncio.subprocess.Process:
    """A gateway as a process of its own."""
    targets = dict.fromkeys(("TASK", "TRAINER", "EVAL", "EXPORT"), f"127.0.0.1:{services_port}")
    environment = {**os.environ, **{f"TUNESMITH_{name}_TARGET": target for name, target in targets.items()}}
    environment |= {"TUNESMITH_PORT": str(port), "TUNESMITH_DRAIN_SECONDS": "5", "TUNESMITH_OTLP_ENDPOINT": endpoint}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", env=environment, stderr=asyncio.subprocess.PIPE
    )


async def test_the_process_serves_traces_and_drains(gateway: Any, collector: tuple[Collector, str]) -> None:
    port, (spans, endpoint) = free_port(), collector
    process = await start_process(gateway.services.port, port, endpoint)
    try:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", headers=gateway.client.headers, trust_env=False
        ) as client:

            async def healthy() -> bool:
                try:
                    return (await client.get("/healthz")).status_code == 200
                except httpx.TransportError:
                    return False

            await eventually(healthy, 20)
            status = Path(f"/proc/{process.pid}/status").read_text()
            kilobytes = int(status.partition("VmRSS:")[2].split()[0])
            assert kilobytes < 150 * 1024, "the bound on idle memory"
            trace = f"00-{'a1' * 16}-{'b2' * 8}-01"
            await client.get(f"/v1/tasks/{'a' * 26}", headers={"traceparent": trace})
            assert gateway.tasks.metadata["traceparent"].startswith(f"00-{'a1' * 16}-"), "the trace goes on"
            assert gateway.tasks.metadata["traceparent"] != trace, "with the gateway's spans in it"
            async with client.stream("GET", f"/v1/tasks/{'a' * 26}:watch") as response:
                process.send_signal(signal.SIGTERM)
                text = "".join([chunk async for chunk in response.aiter_text()])
            assert "the gateway restarts" in text
        _, errors = await asyncio.wait_for(process.communicate(), 10)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    assert b"gateway.access: GET /healthz 200" in errors
    assert b"Traceback" not in errors
    (served,) = [span for span in spans.spans if span.name == "GET /v1/tasks/{task_id}"]
    assert served.trace_id.hex() == "a1" * 16
    assert served.parent_span_id.hex() == "b2" * 8
    status = {item.key: item.value.int_value for item in served.attributes}["http.response.status_code"]
    assert status == 404
