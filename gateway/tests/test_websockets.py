"""/ws/training and /ws/training/{id}: messages, pings, heartbeats, who may connect, how a connection ends."""

import asyncio
import json
import logging
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from gateway.tests.conftest import TASK_ID, Gateway, finetune_task
from servicekit.errors import InvalidArgument, NotFound, Unavailable
from tests.support.waiting import eventually
from tunesmith.task.v1 import event_pb2, spec_pb2, task_pb2
from tunesmith.task.v1.task_service_pb2 import (
    WatchTaskRequest,
    WatchTaskResponse,
    WatchTasksRequest,
    WatchTasksResponse,
)


def open_socket(gateway: Gateway, path: str = "/ws/training", **arguments: Any) -> connect:
    headers = {"authorization": f"Bearer {gateway.token()}", **arguments.pop("headers", {})}
    return connect(f"{gateway.url.replace('http', 'ws')}{path}", additional_headers=headers, proxy=None, **arguments)


async def receive(socket: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(10):
        return dict(json.loads(await socket.recv()))


async def closed(socket: ClientConnection) -> int:
    """The code that the gateway closes with."""
    with pytest.raises(ConnectionClosed):
        async with asyncio.timeout(10):
            while True:
                await socket.recv()
    return socket.close_code or 0


def tell(gateway: Gateway, kind: str, *, one: bool = False, cursor: str = "1", **payload: Any) -> None:
    event = event_pb2.TaskEvent(type=kind, task_id=TASK_ID, **payload)
    response = WatchTaskResponse if one else WatchTasksResponse
    gateway.tasks.events.put_nowait(response(event=event, cursor=cursor))


async def test_progress_and_states_of_all_tasks(gateway: Gateway) -> None:
    async with open_socket(gateway) as socket:
        tell(gateway, "task.snapshot", task=finetune_task())
        message = await receive(socket)
        assert list(message) == ["type", "data", "task_id", "progress", "epoch", "step", "loss", "metrics"]
        assert (message["type"], message["task_id"], message["data"]["status"]) == ("status", TASK_ID, "running")
        tell(gateway, "task.progressed", progress=task_pb2.Progress(step=5, total_steps=10, percent=50, epoch=1.5))
        message = await receive(socket)
        assert (message["type"], message["step"], message["progress"], message["epoch"]) == ("progress", 5, 50, 1.5)
        point = task_pb2.MetricPoint(name="loss", step=5, value=2.25)
        tell(gateway, "metrics.logged", metrics=event_pb2.MetricBatch(points=[point]))
        message = await receive(socket)
        assert (message["loss"], message["metrics"], message["data"]["loss"]) == (2.25, {"loss": 2.25}, 2.25)
        assert (message["step"], message["data"]["current_step"]) == (5, 5)
        tell(gateway, "checkpoint.saved", checkpoint=event_pb2.CheckpointEvent())
        failed = finetune_task(state=task_pb2.STATE_FAILED, error=task_pb2.TaskError(message="no memory"))
        failed.state = task_pb2.STATE_FAILED
        tell(gateway, "task.failed", task=failed)
        message = await receive(socket)
        assert (message["type"], message["data"]["status"]) == ("status", "failed")
        message = await receive(socket)
        assert (message["type"], message["data"]["error"], message["data"]["message"]) == (
            "error",
            "no memory",
            "no memory",
        )
    await asyncio.wait_for(gateway.tasks.cancelled.wait(), 10)
    assert isinstance(gateway.tasks.requests[0], WatchTasksRequest)
    assert gateway.tasks.metadata["authorization"].startswith("Bearer ")


async def test_of_a_deleted_task_nothing_more_is_said(gateway: Gateway) -> None:
    async with open_socket(gateway) as socket:
        tell(gateway, "task.snapshot", task=finetune_task())
        tell(gateway, "task.deleted", task=finetune_task())
        tell(gateway, "task.progressed", progress=task_pb2.Progress(step=5))
        tell(gateway, "quota.low")
        tell(gateway, "task.created", task=finetune_task(name="again"))
        assert [(await receive(socket))["type"] for _ in range(3)] == ["status"] * 3


async def test_one_task_until_its_end(gateway: Gateway) -> None:
    async with open_socket(gateway, f"/ws/training/{TASK_ID}") as socket:
        done = finetune_task()
        done.state = task_pb2.STATE_COMPLETED
        tell(gateway, "task.completed", one=True, task=done)
        assert (await receive(socket))["progress"] == 100
        gateway.tasks.events.put_nowait(None)
        assert await closed(socket) == 1000
    request = gateway.tasks.requests[0]
    assert isinstance(request, WatchTaskRequest)
    assert request.task_id == TASK_ID


def other_kinds() -> list[task_pb2.Task]:
    """An evaluation and an export, both failed: of such a training a state and an error are told."""
    specs = (
        spec_pb2.TaskSpec(evaluate=spec_pb2.EvaluateSpec(source_task_id="t1")),
        spec_pb2.TaskSpec(export=spec_pb2.ExportSpec(source_task_id="t1")),
    )
    return [task_pb2.Task(id=TASK_ID, spec=spec, state=task_pb2.STATE_FAILED) for spec in specs]


async def test_evaluations_and_exports_are_not_told(gateway: Gateway) -> None:
    """The training guide's messages are about trainings; other tasks have streams of their own."""
    async with open_socket(gateway) as socket:
        for task in other_kinds():
            tell(gateway, "task.failed", task=task)
            tell(gateway, "task.progressed", progress=task_pb2.Progress(step=5))
        tell(gateway, "task.created", task=finetune_task(name="a training"))
        message = await receive(socket)
        assert (message["type"], message["data"]["status"]) == ("status", "running")


@pytest.mark.parametrize("task", other_kinds(), ids=["evaluation", "export"])
async def test_an_evaluation_or_an_export_is_no_training(gateway: Gateway, task: task_pb2.Task) -> None:
    async with open_socket(gateway, f"/ws/training/{TASK_ID}") as socket:
        tell(gateway, "task.snapshot", one=True, task=task)
        message = await receive(socket)
        assert (message["type"], message["data"]["error"]) == ("error", f"there is no task {TASK_ID}")
        assert await closed(socket) == 1008


async def test_pings_are_answered_in_their_own_form(gateway: Gateway) -> None:
    async with open_socket(gateway) as socket:
        for unheard in ("hello", "[" * 5000, '{"type": "other"}', b"\x00"):
            await socket.send(unheard)
        await socket.send("ping")
        assert await socket.recv() == "pong"
        await socket.send('{"type": "ping"}')
        assert await receive(socket) == {"type": "pong"}


async def test_heartbeats(tmp_path: Path, start_gateway: Any) -> None:
    async with (
        start_gateway(tmp_path, websocket_heartbeat_seconds=0.05) as gateway,
        open_socket(gateway) as socket,
    ):
        assert [await receive(socket), await receive(socket)] == [{"type": "heartbeat"}] * 2


async def test_a_large_message_ends_the_connection(gateway: Gateway) -> None:
    async with open_socket(gateway) as socket:
        await socket.send("x" * 17 * 1024)
        assert await closed(socket) == 1009


async def refused(gateway: Gateway, path: str = "/ws/training", **arguments: Any) -> tuple[int, Any]:
    with pytest.raises(InvalidStatus) as info:
        async with open_socket(gateway, path, **arguments):
            pass
    response = info.value.response
    assert response.headers["x-request-id"]
    assert response.headers["x-content-type-options"] == "nosniff"
    return response.status_code, json.loads(response.body or b"null")


@pytest.mark.parametrize("authorization", ["", "Bearer nonsense", "Basic eA=="])
async def test_a_token_is_needed(gateway: Gateway, authorization: str) -> None:
    status, document = await refused(gateway, headers={"authorization": authorization})
    assert (status, list(document)) == (401, ["detail"])
    assert not gateway.tasks.requests


async def test_a_browser_sends_its_token_as_a_subprotocol(gateway: Gateway) -> None:
    offered = [Subprotocol("tunesmith"), Subprotocol(f"bearer.{gateway.token('eve')}")]
    async with open_socket(gateway, headers={"authorization": ""}, subprotocols=offered) as socket:
        assert socket.subprotocol == "tunesmith"
        await socket.send("ping")
        assert await socket.recv() == "pong"

        async def asked() -> bool:
            return bool(gateway.tasks.requests)

        await eventually(asked)
    assert gateway.tasks.metadata["authorization"] == offered[1].replace("bearer.", "Bearer ")


async def test_a_token_in_the_address_is_not_taken_and_not_logged(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "uvicorn")
    token = gateway.token()
    status, _ = await refused(gateway, f"/ws/training?token={token}", headers={"authorization": ""})
    assert status == 401
    async with open_socket(gateway, f"/ws/training?token={token}"):
        pass
    ours = [record for record in caplog.records if record.name.startswith(("uvicorn", "gateway"))]
    assert not [record for record in ours if token in record.getMessage()]


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("https://evil.example", False),
        ("null", False),
        ("http://[", False),
        ("https://ui.example", True),
        ("http://127.0.0.1:{port}", True),
        ("http://localhost:{port}", False),
    ],
)
async def test_pages_of_other_sites_may_not_connect(
    tmp_path: Path, start_gateway: Any, origin: str, allowed: bool
) -> None:
    async with start_gateway(tmp_path, cors_origins=("https://ui.example",)) as gateway:
        headers = {"origin": origin.format(port=gateway.url.rpartition(":")[2])}
        if allowed:
            async with open_socket(gateway, headers=headers) as socket:
                await socket.send("ping")
                assert await socket.recv() == "pong"
        else:
            status, _ = await refused(gateway, headers=headers)
            assert status == 403


@pytest.mark.parametrize("path", ["/ws", "/ws/other", "/ws/training/a/b", "/v1/tasks", "/ws/training/../x"])
async def test_other_addresses_are_not_there(gateway: Gateway, path: str) -> None:
    status, document = await refused(gateway, path)
    assert (status, list(document)) == (404, ["detail"])


async def test_other_hosts_are_not_served(gateway: Gateway) -> None:
    host = gateway.url.removeprefix("http://")
    reader, writer = await asyncio.open_connection(*host.split(":"))
    writer.write(
        b"GET /ws/training HTTP/1.1\r\nhost: evil.example\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
        b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    async with asyncio.timeout(10):
        assert (await reader.readline()).split()[1] == b"421"
    writer.close()


async def test_errors_of_a_stream_are_told(gateway: Gateway) -> None:
    gateway.tasks.error = NotFound("there is no task x")
    async with open_socket(gateway, "/ws/training/x") as socket:
        message = await receive(socket)
        assert (message["type"], message["data"]["error"]) == ("error", "there is no task x")
        assert await closed(socket) == 1008


async def test_it_closes_when_its_token_expires(gateway: Gateway) -> None:
    token = gateway.token(lifetime=timedelta(seconds=4))
    async with open_socket(gateway, headers={"authorization": f"Bearer {token}"}) as socket:
        tell(gateway, "task.snapshot", task=finetune_task())
        assert (await receive(socket))["type"] == "status"
        message = await receive(socket)
        assert (message["type"], "expired" in message["data"]["error"]) == ("error", True)
        assert await closed(socket) == 4401
    await asyncio.wait_for(gateway.tasks.cancelled.wait(), 10)
    assert len(gateway.tasks.requests) == 1, "nothing was tried again with it"


async def test_it_goes_on_after_a_service_was_away(gateway: Gateway) -> None:
    async with open_socket(gateway) as socket:
        tell(gateway, "task.snapshot", task=finetune_task(), cursor="41")
        await receive(socket)
        gateway.tasks.events.put_nowait(Unavailable("restarting"))
        tell(gateway, "task.snapshot", task=finetune_task(), cursor="42")
        assert (await receive(socket))["type"] == "status"
    first, second = gateway.tasks.requests
    assert isinstance(first, WatchTasksRequest)
    assert isinstance(second, WatchTasksRequest)
    assert (first.cursor, second.cursor) == ("", "41")


async def test_a_bad_request_is_not_tried_again(gateway: Gateway) -> None:
    gateway.tasks.error = InvalidArgument("no")
    async with open_socket(gateway) as socket:
        assert await closed(socket) == 1008
    assert len(gateway.tasks.requests) == 1


async def test_a_leaving_gateway_closes_its_sockets(gateway: Gateway) -> None:
    async with open_socket(gateway) as socket:
        tell(gateway, "task.snapshot", task=finetune_task())
        await receive(socket)
        gateway.closing.set()
        assert await closed(socket) == 1001
    await asyncio.wait_for(gateway.tasks.cancelled.wait(), 10)


async def test_a_reader_that_takes_nothing_is_left(tmp_path: Path, start_gateway: Any) -> None:
    """What waits for it stays bounded: events are no longer read from the service."""
    async with (
        start_gateway(tmp_path, websocket_send_seconds=0.3) as gateway,
        open_socket(gateway, max_queue=1) as socket,
    ):
        task = finetune_task(metrics={f"metric {index:04}": 0.5 for index in range(2000)})
        for _ in range(400):
            tell(gateway, "task.snapshot", task=task)
        await asyncio.wait_for(gateway.tasks.cancelled.wait(), 20)
        assert gateway.tasks.events.qsize() > 100
        socket.transport.abort()


async def test_only_so_many_may_be_open(tmp_path: Path, start_gateway: Any) -> None:
    async with start_gateway(tmp_path, max_connections=2) as gateway:
        async with open_socket(gateway), open_socket(gateway):
            status, _ = await refused(gateway)
            assert status == 503
        async with open_socket(gateway) as socket:
            await socket.send("ping")
            assert await socket.recv() == "pong"
