"""A server with one servicer, as every service runs it, and who may call it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from servicekit.grpc_client import open_channel
from servicekit.grpc_server import Server, running_server
from servicekit.identity import Role, TokenIssuer, current_principal, generate_private_key, public_key
from servicekit.settings import ServiceSettings
from tunesmith.task.v1 import task_pb2, task_service_pb2, task_service_pb2_grpc

TASK_SERVICE = "tunesmith.task.v1.TaskService"
TASK_ID = "0123456789abcdefghjkmnpqrs"


class Tasks(task_service_pb2_grpc.TaskServiceServicer):
    """Answers GetTask and WatchTask through functions that a test sets."""

    get: Callable[[Any], Awaitable[Any]]
    watch: Callable[[Any], AsyncIterator[Any]]

    async def GetTask(self, request: Any, context: Any) -> Any:
        return await self.get(request)

    async def WatchTask(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async for item in self.watch(request):
            yield item


async def echo_caller(request: Any) -> Any:
    principal = current_principal()
    return task_service_pb2.GetTaskResponse(
        task=task_pb2.Task(id=request.task_id, owner=principal.user, name=principal.role)
    )


@dataclass
class Deployment:
    """One running service with a key of its own."""

    directory: Path
    stack: AsyncExitStack
    tasks: Tasks = field(default_factory=Tasks)
    key: bytes = field(default_factory=generate_private_key)
    server: Server = field(init=False)

    async def start(self, **settings: Any) -> None:
        """Serves on a free port."""
        self.directory.mkdir(exist_ok=True)
        public = self.directory / "public.pem"
        public.write_bytes(public_key(self.key))
        made = ServiceSettings(**{"public_key_file": public, "drain_seconds": 2, **settings})
        servicer = (task_service_pb2_grpc.add_TaskServiceServicer_to_server, self.tasks, TASK_SERVICE)
        self.server = await self.stack.enter_async_context(running_server(made, [servicer]))

    def token(self, user: str = "ann", role: Role = Role.USER, lifetime: timedelta = timedelta(minutes=5)) -> str:
        """A token that the service takes."""
        return TokenIssuer(self.key).issue(user, role, lifetime)

    async def channel(self, token: str | None = None) -> grpc.aio.Channel:
        """A channel to the service, closed at the end of the test."""
        return await self.stack.enter_async_context(open_channel(f"127.0.0.1:{self.server.port}", token))

    async def stub(self, token: str | None = None) -> Any:
        """A stub that calls with a token."""
        return task_service_pb2_grpc.TaskServiceStub(await self.channel(token))


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    async with AsyncExitStack() as stack:
        made = Deployment(tmp_path / "deployment", stack)
        made.tasks.get = echo_caller
        await made.start()
        yield made
