"""A process with telemetry: a server, a client of it, and a message on the bus's headers. Prints what it saw."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.trace import SpanKind

from servicekit import errors, telemetry
from servicekit.bus import Outgoing
from servicekit.grpc_client import open_channel
from servicekit.grpc_server import running_server
from servicekit.settings import ServiceSettings
from tunesmith.task.v1 import task_pb2, task_service_pb2, task_service_pb2_grpc

seen: dict[str, Any] = {}


class Tasks(task_service_pb2_grpc.TaskServiceServicer):
    async def GetTask(self, request: Any, context: Any) -> Any:
        with telemetry.span("inside the servicer"):
            pass
        seen["headers"] = Outgoing("subject", b"").all_headers()
        return task_service_pb2.GetTaskResponse(task=task_pb2.Task(id=request.task_id))

    async def DeleteTask(self, request: Any, context: Any) -> Any:
        raise errors.NotFound("no such task")

    async def StopTask(self, request: Any, context: Any) -> Any:
        raise ValueError("a defect")

    async def WatchTask(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for _ in range(3):
            yield task_service_pb2.WatchTaskResponse()


async def main(endpoint: str) -> None:
    telemetry.configure("probe", endpoint)
    tasks_servicer = Tasks()  # type: ignore[abstract]  # what it lacks nobody calls
    servicer = (
        task_service_pb2_grpc.add_TaskServiceServicer_to_server,
        tasks_servicer,
        "tunesmith.task.v1.TaskService",
    )
    began = time.monotonic()
    async with running_server(ServiceSettings(), [servicer]) as server:
        channel = open_channel(f"127.0.0.1:{server.port}")
        tasks = task_service_pb2_grpc.TaskServiceStub(channel)
        name = "0" * 26
        with telemetry.span("request"):
            assert (await tasks.GetTask(task_service_pb2.GetTaskRequest(task_id=name))).task.id == name
        with telemetry.span("message", kind=SpanKind.CONSUMER, parent=telemetry.extract(seen["headers"])):
            pass
        watched = [item async for item in tasks.WatchTask(task_service_pb2.WatchTaskRequest(task_id=name))]
        assert len(watched) == 3
        for call, kind in (
            (tasks.DeleteTask(task_service_pb2.DeleteTaskRequest(task_id=name)), errors.NotFound),
            (tasks.StopTask(task_service_pb2.StopTaskRequest(task_id=name)), errors.Internal),
        ):
            try:
                await call
            except kind:
                continue
            raise AssertionError(f"expected {kind}")
        check: Any = health_pb2_grpc.HealthStub(channel)
        await check.Check(health_pb2.HealthCheckRequest())
        await channel.close()
    ended = time.monotonic()
    telemetry.shutdown()
    print(
        json.dumps(
            {
                "traceparent": seen["headers"]["traceparent"],
                "calls_seconds": ended - began,
                "shutdown_seconds": time.monotonic() - ended,
            }
        )
    )


asyncio.run(main(sys.argv[1]))
