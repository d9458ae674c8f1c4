"""The WebSockets that are served: /ws/training for all of the caller's trainings, /ws/training/{task_id} for one."""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from gateway.backends import Backends
from gateway.calls import call_metadata
from gateway.guide.tasks import is_training
from gateway.http import Request, Send
from gateway.settings import GatewaySettings
from gateway.ws.connection import Connection, Events
from gateway.ws.handshake import Handshake
from gateway.ws.refusal import refuse
from servicekit.errors import NotFound, TunesmithError, Unavailable
from servicekit.identity import TokenVerifier
from tunesmith.task.v1 import event_pb2, task_service_pb2, task_service_pb2_grpc

ALL, ONE = "/ws/training", "/ws/training/{task_id}"
_PATH = re.compile(r"/ws/training(?:/(?P<task_id>[0-9a-zA-Z]{1,64}))?/?")

Metadata = tuple[tuple[str, str], ...]


class Sockets:
    """Opens WebSockets and serves them until closing is set."""

    def __init__(self, backends: Backends, settings: GatewaySettings, closing: asyncio.Event) -> None:
        self._tasks = task_service_pb2_grpc.TaskServiceStub(backends.channels["task"])
        self._settings = settings
        self._closing = closing
        self._open = 0
        verifier = TokenVerifier(settings.public_key_file.read_bytes()) if settings.public_key_file else None
        self._handshake = Handshake(verifier, frozenset(settings.cors_origins))

    async def __call__(self, request: Request, send: Send) -> None:
        """Serves one client; one that may not connect is refused with an HTTP status."""
        try:
            events = self._events(request)
        except TunesmithError as error:
            await refuse(request, send, error)
            return
        self._open += 1
        try:
            await self._serve(request, send, events)
        finally:
            self._open -= 1

    async def _serve(self, request: Request, send: Send, events: Events) -> None:
        await send({"type": "websocket.accept", "subprotocol": self._handshake.subprotocol(request)})
        connection = Connection(
            request,
            send,
            heartbeat_seconds=self._settings.websocket_heartbeat_seconds,
            send_seconds=self._settings.websocket_send_seconds,
        )
        await connection.serve(events, self._closing)

    def _events(self, request: Request) -> Events:
        """What the client is to be told. Raises NotFound, Unauthenticated, PermissionDenied, Unavailable."""
        if self._open >= self._settings.max_connections:
            raise Unavailable("too many WebSockets are open; try again later", reason="TOO_MANY_CONNECTIONS")
        found = _PATH.fullmatch(request.scope["path"])
        if found is None:
            raise NotFound(f"there is no WebSocket at {request.path}; there are {ALL} and {ONE}")
        metadata = call_metadata(request, self._handshake.authorization(request))
        task_id = found["task_id"]
        request.route = ONE if task_id else ALL
        if task_id:
            return lambda cursor: self._one(task_id, cursor, metadata)
        return lambda cursor: self._all(cursor, metadata)

    def _one(self, task_id: str, cursor: str, metadata: Metadata) -> AsyncGenerator[tuple[event_pb2.TaskEvent, str]]:
        request = task_service_pb2.WatchTaskRequest(task_id=task_id, cursor=cursor)
        return _of_training(task_id, _pairs(lambda: self._tasks.WatchTask(request, metadata=metadata)))

    def _all(self, cursor: str, metadata: Metadata) -> AsyncGenerator[tuple[event_pb2.TaskEvent, str]]:
        request = task_service_pb2.WatchTasksRequest(cursor=cursor)
        return _pairs(lambda: self._tasks.WatchTasks(request, metadata=metadata))


async def _of_training(
    task_id: str, events: AsyncGenerator[tuple[event_pb2.TaskEvent, str]]
) -> AsyncGenerator[tuple[event_pb2.TaskEvent, str]]:
    """The events of a training. Raises NotFound for an evaluation or export, as this surface's other routes do."""
    async with aclosing(events) as source:
        async for event, cursor in source:
            if event.HasField("task") and not is_training(event.task):
                raise NotFound(f"there is no task {task_id}", reason="TASK_NOT_FOUND")
            yield event, cursor


async def _pairs(open_call: Callable[[], Any]) -> AsyncGenerator[tuple[event_pb2.TaskEvent, str]]:
    call = open_call()
    try:
        async for response in call:
            yield response.event, response.cursor
    finally:
        call.cancel()
