"""Exports as clients see them: tasks of the task service, and what their stored results say."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from export_service.downloads import file_pieces
from export_service.results import RESULT, Result
from servicekit.errors import FailedPrecondition, InvalidArgument, NotFound, Problem, TunesmithError
from servicekit.grpc_client import bearer
from servicekit.objects import ObjectStore
from tunesmith.export.v1 import export_service_pb2 as pb
from tunesmith.task.v1 import spec_pb2, task_pb2, task_service_pb2, task_service_pb2_grpc

REMEMBERED = 512
READ_AT_ONCE = 8
OF_TASK, OF_REQUEST = "spec.export.", "spec."


class Exports:
    """Creates, finds and reads exports, each call with the token of the one who asks."""

    def __init__(self, tasks: "task_service_pb2_grpc.TaskServiceAsyncStub", store: ObjectStore) -> None:
        self._tasks = tasks
        self._store = store
        self._known: OrderedDict[str, Result] = OrderedDict()
        self._reading = asyncio.Semaphore(READ_AT_ONCE)

    async def create(self, name: str, spec: spec_pb2.ExportSpec, token: str) -> pb.Export:
        """Creates the task. Raises what the task service finds wrong."""
        request = task_service_pb2.CreateTaskRequest(
            name=name or f"export_{datetime.now(UTC):%Y%m%d_%H%M%S}", spec=spec_pb2.TaskSpec(export=spec)
        )
        try:
            answer = await self._tasks.CreateTask(request, metadata=identity(token))
        except InvalidArgument as error:
            problems = [Problem(item.field.replace(OF_TASK, OF_REQUEST, 1), item.message) for item in error.problems]
            message = "" if problems else error.message
            raise InvalidArgument(message, reason=error.reason, problems=problems) from error
        return export_of(answer.task, Result())

    async def get(self, task_id: str, token: str) -> pb.Export:
        """An export with its files. NotFound for other tasks."""
        task = await self._task(task_id, token)
        return export_of(task, await self._result(task, token))

    async def list(self, page_size: int, page_token: str, token: str) -> tuple[list[pb.Export], str]:
        """A page of exports with their files, newest first, and the token of the next one."""
        request = task_service_pb2.ListTasksRequest(
            page_size=page_size, page_token=page_token, kinds=[task_pb2.KIND_EXPORT]
        )
        answer = await self._tasks.ListTasks(request, metadata=identity(token))
        results = await asyncio.gather(*(self._tolerantly(task, token) for task in answer.tasks))
        found = [export_of(task, result) for task, result in zip(answer.tasks, results, strict=True)]
        return found, answer.next_page_token

    async def download(
        self, task_id: str, name: str, offset: int, token: str
    ) -> AsyncIterator[pb.DownloadArtifactResponse]:
        """The bytes of a file from an offset; the first piece tells its size and hash.

        NotFound for what export.json does not list, FailedPrecondition before there is a result, InvalidArgument for an
        offset beyond the end.
        """
        task = await self._task(task_id, token)
        prefix = await self._prefix(task, token)
        if not prefix:
            state = task_pb2.State.Name(task.state).removeprefix("STATE_")
            raise FailedPrecondition(f"export {task_id} is {state} and has no files", reason="NO_ARTIFACTS")
        artifact = (await self._result(task, token)).artifact(name)
        if offset > artifact.size:
            text = f"{offset} is beyond the end of {name}, which has {artifact.size} bytes"
            raise InvalidArgument(problems=[Problem("offset", text)])
        yield pb.DownloadArtifactResponse(total_size=artifact.size, sha256=artifact.sha256)
        key = f"{prefix}/{name}"
        async for piece in file_pieces(self._store, key, size=artifact.size, sha256=artifact.sha256, offset=offset):
            yield pb.DownloadArtifactResponse(data=piece)

    async def _task(self, task_id: str, token: str) -> task_pb2.Task:
        request = task_service_pb2.GetTaskRequest(task_id=task_id)
        task: task_pb2.Task = (await self._tasks.GetTask(request, metadata=identity(token))).task
        if not task.spec.HasField("export"):
            raise NotFound(f"task {task_id} is no export")
        return task

    async def _prefix(self, task: task_pb2.Task, token: str) -> str:
        """Where the output of a completed task lies in the store; empty without one."""
        if task.state != task_pb2.STATE_COMPLETED:
            return ""
        request = task_service_pb2.GetTaskSourceRequest(task_id=task.id)
        source = (await self._tasks.GetTaskSource(request, metadata=identity(token))).source
        return str(source.output.prefix).rstrip("/")

    async def _result(self, task: task_pb2.Task, token: str) -> Result:
        """What export.json says, empty before there is one. A stored result never changes."""
        key = f"{task.id}.{task.run}.{task.attempt}"
        if key in self._known and task.state == task_pb2.STATE_COMPLETED:
            self._known.move_to_end(key)
            return self._known[key]
        async with self._reading:
            prefix = await self._prefix(task, token)
            if not prefix:
                return Result()
            result = Result.from_json(await self._store.get_bytes(f"{prefix}/{RESULT}"))
        self._known[key] = result
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return result

    async def _tolerantly(self, task: task_pb2.Task, token: str) -> Result:
        """A list is of use without the files of one whose result cannot be read now."""
        try:
            return await self._result(task, token)
        except (TunesmithError, ValueError):
            return Result()


def export_of(task: task_pb2.Task, result: Result) -> pb.Export:
    """A task and its result as a message."""
    return pb.Export(
        task_id=task.id,
        name=task.name,
        spec=task.spec.export,
        state=task.state,
        create_time=task.create_time,
        artifacts=[pb.Artifact(name=item.name, size=item.size, sha256=item.sha256) for item in result.artifacts],
        checks=[
            pb.ParityCheck(
                artifact=item.artifact,
                name=item.name,
                value=item.value,
                limit=item.limit,
                passed=item.passed,
                text=item.text,
            )
            for item in result.checks
        ],
    )


def identity(token: str) -> Any:
    """The metadata of a call on behalf of somebody; none where there is no authentication."""
    return bearer(token) if token else None
