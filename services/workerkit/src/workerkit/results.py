"""Tasks of one kind as their users see them: created, found and listed, with the results that they have stored."""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, TypeVar

from modelkit.checkpoints import MANIFEST
from servicekit.errors import FailedPrecondition, Internal, InvalidArgument, NotFound, Problem, TunesmithError
from servicekit.objects import ObjectStore
from tunesmith.task.v1 import spec_pb2, task_pb2, task_service_pb2, task_service_pb2_grpc
from workerkit.artifacts import ArtifactDamaged, read_manifest
from workerkit.sources import identity, source_of

R = TypeVar("R")

REMEMBERED = 512
READ_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class ResultKind(Generic[R]):
    """A kind of tasks, and the file in which they store their result.

    work is the field of TaskSpec that they have, "evaluate"; noun what users call them, "evaluation"; made what they
    make, "report". parse turns the content of the file into the result; with one that is damaged it raises what such
    code does: ValueError, LookupError, TypeError or AttributeError.

    none_reason is the reason of the error where there is no result yet. A file of more than most_bytes is not read; the
    error has large_reason and ends with large_advice, what its user can do then.
    """

    work: str
    noun: str
    made: str
    file: str
    parse: Callable[[bytes], R]
    none_reason: str
    most_bytes: int
    large_reason: str
    large_advice: str


class TaskResults(Generic[R]):
    """Tasks of one kind and their results, each call with the token of the one who asks."""

    def __init__(
        self, tasks: "task_service_pb2_grpc.TaskServiceAsyncStub", store: ObjectStore, kind: ResultKind[R]
    ) -> None:
        self._tasks = tasks
        self._store = store
        self._kind = kind
        self._known: OrderedDict[str, R] = OrderedDict()
        self._reading = asyncio.Semaphore(READ_AT_ONCE)

    async def create(self, name: str, spec: spec_pb2.TaskSpec, token: str) -> task_pb2.Task:
        """A new task, without a name named after the time.

        Raises what the task service finds wrong, by the fields of a request that has the work itself as its spec.
        """
        work = self._kind.work
        request = task_service_pb2.CreateTaskRequest(
            name=name or f"{work}_{datetime.now(UTC):%Y%m%d_%H%M%S}", spec=spec
        )
        try:
            answer: task_service_pb2.CreateTaskResponse = await self._tasks.CreateTask(
                request, metadata=identity(token)
            )
        except InvalidArgument as error:
            problems = [
                Problem(item.field.replace(f"spec.{work}.", "spec.", 1), item.message) for item in error.problems
            ]
            message = "" if problems else error.message
            raise InvalidArgument(message, reason=error.reason, problems=problems) from error
        return answer.task

    async def task(self, task_id: str, token: str) -> task_pb2.Task:
        """A task. NotFound for those of other kinds and of others."""
        request = task_service_pb2.GetTaskRequest(task_id=task_id)
        answer: task_service_pb2.GetTaskResponse = await self._tasks.GetTask(request, metadata=identity(token))
        if answer.task.spec.WhichOneof("work") != self._kind.work:
            raise NotFound(f"task {task_id} is no {self._kind.noun}")
        return answer.task

    async def page(
        self, page_size: int, page_token: str, token: str
    ) -> tuple[list[tuple[task_pb2.Task, R | None]], str]:
        """A page of tasks with their results, newest first, and the token of the next one.

        None is the result also where it cannot be read now: the others are of use without it.
        """
        kinds = [task_pb2.Kind.Value(f"KIND_{self._kind.work.upper()}")]
        request = task_service_pb2.ListTasksRequest(page_size=page_size, page_token=page_token, kinds=kinds)
        answer: task_service_pb2.ListTasksResponse = await self._tasks.ListTasks(request, metadata=identity(token))
        results = await asyncio.gather(*(self._tolerantly(task, token) for task in answer.tasks))
        return list(zip(answer.tasks, results, strict=True)), answer.next_page_token

    async def output(self, task: task_pb2.Task, token: str) -> str:
        """Prefix of a task's output, without a slash at its end. FailedPrecondition before there is one."""
        return (await self._stored(task, token)).prefix

    async def sha256(self, task: task_pb2.Task, name: str, token: str) -> str:
        """SHA-256 of a file of a task's output as its manifest says; empty where no manifest was recorded.

        FailedPrecondition before there is an output, NotFound for a file that it has not, Internal when the manifest is
        damaged.
        """
        stored, owner = await self._stored(task, token), f"{self._kind.noun} {task.id}"
        return await self._recorded(stored, name, owner)

    async def _stored(self, task: task_pb2.Task, token: str) -> task_service_pb2.TaskOutput:
        if (stored := await self._output(task, token)).prefix:
            return stored
        state = task_pb2.State.Name(task.state).removeprefix("STATE_")
        message = f"{self._kind.noun} {task.id} is {state} and has no {self._kind.made}"
        raise FailedPrecondition(message, reason=self._kind.none_reason)

    async def result(self, task: task_pb2.Task, token: str) -> R | None:
        """What a task has stored, None before it has. A stored result never changes, so it is read once.

        NotFound, FailedPrecondition or Internal for one that is not there, too large or damaged.
        """
        key = f"{task.id}.{task.run}.{task.attempt}"
        if key in self._known and task.state == task_pb2.STATE_COMPLETED:
            self._known.move_to_end(key)
            return self._known[key]
        async with self._reading:
            stored = await self._output(task, token)
            if not stored.prefix:
                return None
            result = await self._read(stored, f"{self._kind.noun} {task.id}")
        self._known[key] = result
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return result

    async def _output(self, task: task_pb2.Task, token: str) -> task_service_pb2.TaskOutput:
        """Where the output of a completed task lies in the store; without a prefix when it has none."""
        if task.state != task_pb2.STATE_COMPLETED:
            return task_service_pb2.TaskOutput()
        stored = (await source_of(self._tasks, task.id, token)).output
        stored.prefix = stored.prefix.rstrip("/")
        return stored

    async def _read(self, stored: task_service_pb2.TaskOutput, owner: str) -> R:
        file, most = self._kind.file, self._kind.most_bytes
        key = f"{stored.prefix}/{file}"
        info = await self._store.stat(key)
        if info is None:
            raise NotFound(f"{owner} has no {file}")
        if info.size > most:
            text = f"{file} of {owner} has {info.size} bytes, more than {most}; {self._kind.large_advice}"
            raise FailedPrecondition(text, reason=self._kind.large_reason)
        content = await self._store.get_bytes(key)
        expected = await self._recorded(stored, file, owner)
        if expected and hashlib.sha256(content).hexdigest() != expected:
            raise damaged(file, owner, "it does not have the SHA-256 it was saved with")
        try:
            return self._kind.parse(content)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise damaged(file, owner, repr(error)) from error

    async def _recorded(self, stored: task_service_pb2.TaskOutput, file: str, owner: str) -> str:
        if not stored.manifest_sha256:
            return ""
        try:
            manifest = await read_manifest(self._store, stored.prefix, stored.manifest_sha256)
        except ArtifactDamaged as error:
            raise damaged(MANIFEST, owner, str(error)) from error
        for entry in manifest.files:
            if entry.path == file:
                return entry.sha256
        raise NotFound(f"{owner} has no {file}")

    async def _tolerantly(self, task: task_pb2.Task, token: str) -> R | None:
        try:
            return await self.result(task, token)
        except TunesmithError:
            return None


def damaged(file: str, owner: str, why: str) -> Internal:
    """The error for a stored file of a task that is not what was stored."""
    return Internal(f"{file} of {owner} is damaged in the object store: {why}; run it again", reason="DATA_DAMAGED")


def check_offset(offset: int, size: int, name: str) -> None:
    """Raises InvalidArgument for an offset beyond the end of a file of size bytes."""
    if offset > size:
        text = f"{offset} is beyond the end of {name}, which has {size} bytes"
        raise InvalidArgument(problems=[Problem("offset", text)])
