"""A task service that keeps a few tasks for their owners, behind a real gRPC server and with real tokens."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from servicekit.errors import InvalidArgument, NotFound
from servicekit.grpc_client import open_channel
from servicekit.grpc_server import running_server
from servicekit.identity import Role, TokenIssuer, current_principal, generate_private_key, public_key
from servicekit.settings import ServiceSettings
from services.workerkit.tests.desk import NAME
from tunesmith.task.v1 import spec_pb2, task_pb2, task_service_pb2, task_service_pb2_grpc


@dataclass(eq=False)
class KnownTasks(task_service_pb2_grpc.TaskServiceServicer):
    """Tells of tasks to their owners alone. With a refusal nothing is created."""

    tasks: dict[str, task_pb2.Task] = field(default_factory=dict)
    sources: dict[str, task_service_pb2.TaskSource] = field(default_factory=dict)
    asked_for_sources: int = 0
    refusal: InvalidArgument | None = None

    def add(self, source: task_service_pb2.TaskSource, owner: str = "ann") -> task_service_pb2.TaskSource:
        """Makes a task known by what it has produced."""
        task = task_pb2.Task(id=source.task_id, name=source.name, owner=owner, spec=source.spec, state=source.state)
        self.tasks[task.id], self.sources[task.id] = task, source
        return source

    def add_work(self, task_id: str, spec: spec_pb2.TaskSpec, prefix: str = "", *, manifest_sha256: str = "") -> None:
        """Makes a task of ann's known, completed where a prefix says where its output is stored."""
        state = task_pb2.STATE_COMPLETED if prefix else task_pb2.STATE_RUNNING
        source = task_service_pb2.TaskSource(task_id=task_id, name=f"{task_id}!", spec=spec, state=state)
        source.output.prefix, source.output.manifest_sha256 = prefix, manifest_sha256
        self.add(source)

    def _mine(self, task_id: str) -> task_pb2.Task:
        task = self.tasks.get(task_id)
        if task is None or task.owner != current_principal().user:
            raise NotFound(f"there is no task {task_id}")
        return task

    async def CreateTask(self, request: Any, context: Any) -> Any:
        if self.refusal is not None:
            raise self.refusal
        state = task_pb2.STATE_PENDING
        source = task_service_pb2.TaskSource(task_id="created", name=request.name, spec=request.spec, state=state)
        self.add(source, current_principal().user)
        return task_service_pb2.CreateTaskResponse(task=self.tasks["created"])

    async def GetTask(self, request: Any, context: Any) -> Any:
        return task_service_pb2.GetTaskResponse(task=self._mine(request.task_id))

    async def ListTasks(self, request: Any, context: Any) -> Any:
        mine = [task for task in self.tasks.values() if task.owner == current_principal().user]
        kinds = {task_pb2.Kind.Name(kind).removeprefix("KIND_").lower() for kind in request.kinds}
        found = [task for task in mine if task.spec.WhichOneof("work") in kinds]
        return task_service_pb2.ListTasksResponse(tasks=found[: request.page_size or 50], next_page_token="more")

    async def GetTaskSource(self, request: Any, context: Any) -> Any:
        self.asked_for_sources += 1
        return task_service_pb2.GetTaskSourceResponse(source=self.sources[self._mine(request.task_id).id])


@dataclass(frozen=True)
class TaskOffice:
    """A running task service: what it knows, how it is called, and what its tokens are made and checked with."""

    known: KnownTasks
    stub: Any
    issuer: TokenIssuer
    public_key_file: Path

    def token(self, user: str = "ann", role: Role = Role.USER) -> str:
        return self.issuer.issue(user, role, timedelta(minutes=5))


@asynccontextmanager
async def running_tasks(public_key_file: Path) -> AsyncIterator[TaskOffice]:
    """A task service with a key of its own, whose public half it writes."""
    key, known = generate_private_key(), KnownTasks()
    public_key_file.write_bytes(public_key(key))
    settings = ServiceSettings(drain_seconds=0, public_key_file=public_key_file)
    servicers = [(task_service_pb2_grpc.add_TaskServiceServicer_to_server, known, NAME)]
    async with (
        running_server(settings, servicers) as server,
        open_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        yield TaskOffice(known, task_service_pb2_grpc.TaskServiceStub(channel), TokenIssuer(key), public_key_file)
