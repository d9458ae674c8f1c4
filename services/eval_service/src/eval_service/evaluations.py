"""Evaluations as clients see them: tasks of the task service, and what their stored reports say."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from servicekit.errors import FailedPrecondition, InvalidArgument, NotFound, Problem, TunesmithError
from servicekit.grpc_client import bearer
from servicekit.objects import ObjectStore
from tunesmith.eval.v1 import eval_service_pb2 as pb
from tunesmith.task.v1 import spec_pb2, task_pb2, task_service_pb2, task_service_pb2_grpc

SUMMARY = "summary.json"
SUMMARY_BYTES = 4 << 20
REMEMBERED = 512
READ_AT_ONCE = 8
PIECE_BYTES = 1 << 20
OF_TASK, OF_REQUEST = "spec.evaluate.", "spec."


class Evaluations:
    """Creates, finds and reads evaluations, each call with the token of the one who asks."""

    def __init__(self, tasks: "task_service_pb2_grpc.TaskServiceAsyncStub", store: ObjectStore) -> None:
        self._tasks = tasks
        self._store = store
        self._known: OrderedDict[str, Mapping[str, Any]] = OrderedDict()
        self._reading = asyncio.Semaphore(READ_AT_ONCE)

    async def create(self, name: str, spec: spec_pb2.EvaluateSpec, token: str) -> pb.Evaluation:
        """Creates the task. Raises what the task service finds wrong, by the fields of CreateEvaluationRequest."""
        request = task_service_pb2.CreateTaskRequest(
            name=name or f"evaluate_{datetime.now(UTC):%Y%m%d_%H%M%S}", spec=spec_pb2.TaskSpec(evaluate=spec)
        )
        try:
            answer = await self._tasks.CreateTask(request, metadata=_identity(token))
        except InvalidArgument as error:
            problems = [Problem(item.field.replace(OF_TASK, OF_REQUEST, 1), item.message) for item in error.problems]
            message = "" if problems else error.message
            raise InvalidArgument(message, reason=error.reason, problems=problems) from error
        return evaluation_of(answer.task, None)

    async def get(self, task_id: str, token: str) -> pb.Evaluation:
        """An evaluation with its scores. NotFound for other tasks."""
        task = await self._task(task_id, token)
        return evaluation_of(task, await self._report_of(task, token))

    async def list(self, page_size: int, page_token: str, token: str) -> tuple[list[pb.Evaluation], str]:
        """A page of evaluations with their scores, newest first, and the token of the next one."""
        request = task_service_pb2.ListTasksRequest(
            page_size=page_size, page_token=page_token, kinds=[task_pb2.KIND_EVALUATE]
        )
        answer = await self._tasks.ListTasks(request, metadata=_identity(token))
        reports = await asyncio.gather(*(self._tolerantly(task, token) for task in answer.tasks))
        found = [evaluation_of(task, report) for task, report in zip(answer.tasks, reports, strict=True)]
        return found, answer.next_page_token

    async def download(
        self, task_id: str, name: str, offset: int, token: str
    ) -> AsyncIterator[pb.DownloadReportResponse]:
        """The bytes of a report's file from an offset. FailedPrecondition before there is one."""
        task = await self._task(task_id, token)
        prefix = await self._prefix(task, token)
        if not prefix:
            state = task_pb2.State.Name(task.state).removeprefix("STATE_")
            raise FailedPrecondition(f"evaluation {task_id} is {state} and has no report", reason="NO_REPORT")
        key = f"{prefix}/{name}"
        info = await self._store.stat(key)
        if info is None:
            raise NotFound(f"evaluation {task_id} has no {name}")
        if offset > info.size:
            text = f"{offset} is beyond the end of {name}, which has {info.size} bytes"
            raise InvalidArgument(problems=[Problem("offset", text)])
        yield pb.DownloadReportResponse(total_size=info.size)
        async for piece in self._store.read(key, offset):
            for start in range(0, len(piece), PIECE_BYTES):
                yield pb.DownloadReportResponse(data=piece[start : start + PIECE_BYTES])

    async def _task(self, task_id: str, token: str) -> task_pb2.Task:
        request = task_service_pb2.GetTaskRequest(task_id=task_id)
        task: task_pb2.Task = (await self._tasks.GetTask(request, metadata=_identity(token))).task
        if not task.spec.HasField("evaluate"):
            raise NotFound(f"task {task_id} is no evaluation")
        return task

    async def _prefix(self, task: task_pb2.Task, token: str) -> str:
        """Where the output of a completed task lies in the store; empty without one."""
        if task.state != task_pb2.STATE_COMPLETED:
            return ""
        request = task_service_pb2.GetTaskSourceRequest(task_id=task.id)
        source = (await self._tasks.GetTaskSource(request, metadata=_identity(token))).source
        return str(source.output.prefix).rstrip("/")

    async def _report_of(self, task: task_pb2.Task, token: str) -> Mapping[str, Any] | None:
        """What summary.json says; None before there is one. A stored report never changes."""
        key = f"{task.id}.{task.run}.{task.attempt}"
        if key in self._known and task.state == task_pb2.STATE_COMPLETED:
            self._known.move_to_end(key)
            return self._known[key]
        async with self._reading:
            prefix = await self._prefix(task, token)
            if not prefix:
                return None
            content = await self._summary(f"{prefix}/{SUMMARY}", task.id)
        report: dict[str, Any] = orjson.loads(content)
        self._known[key] = report
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return report

    async def _summary(self, key: str, task_id: str) -> bytes:
        """A summary that is small enough to be read. NotFound, FailedPrecondition."""
        info = await self._store.stat(key)
        if info is None:
            raise NotFound(f"evaluation {task_id} has no {SUMMARY}")
        if info.size > SUMMARY_BYTES:
            text = f"{SUMMARY} of evaluation {task_id} has {info.size} bytes, more than {SUMMARY_BYTES}"
            raise FailedPrecondition(f"{text}; download its report instead", reason="SUMMARY_TOO_LARGE")
        return await self._store.get_bytes(key)

    async def _tolerantly(self, task: task_pb2.Task, token: str) -> Mapping[str, Any] | None:
        """A list is of use without the scores of one whose report cannot be read now."""
        try:
            return await self._report_of(task, token)
        except (TunesmithError, ValueError):
            return None


def evaluation_of(task: task_pb2.Task, report: Mapping[str, Any] | None) -> pb.Evaluation:
    """A task and its report as a message."""
    found = pb.Evaluation(
        task_id=task.id, name=task.name, spec=task.spec.evaluate, state=task.state, create_time=task.create_time
    )
    if report is None:
        return found
    advice = report["recommendation"]
    found.samples = report["samples"]
    found.recommended_step = advice["step"]
    found.recommendation.CopyFrom(
        pb.Recommendation(
            step=advice["step"],
            distinguishable=advice["distinguishable"],
            equivalent_steps=advice["equivalent_steps"],
            worse_than_base_steps=advice["worse_than_base_steps"],
            text=advice["text"],
        )
    )
    found.checkpoints.extend(_scores_of(item) for item in report["checkpoints"])
    return found


def _scores_of(item: Mapping[str, Any]) -> pb.CheckpointScores:
    """Scores that are undefined are left out; those of suites have no interval."""
    values = [value for value in item["values"] if value["value"] is not None]
    scores = {value["name"]: value["value"] for value in values}
    scores |= {f"suite:{name}": value for name, value in item["suites"].items()}
    return pb.CheckpointScores(
        step=item["step"],
        base_model=item["base_model"],
        total=item["total"] or 0.0,
        scores=scores,
        values=[pb.ScoreValue(**{name: part for name, part in value.items() if part is not None}) for value in values],
    )


def _identity(token: str) -> Any:
    return bearer(token) if token else None
