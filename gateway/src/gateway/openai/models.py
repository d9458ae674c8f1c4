"""Names of models: a task, one of its checkpoints, its base model, or a file of an export.

TASK is the final model, or the newest checkpoint of a task that has none yet; TASK:checkpoint-100 a checkpoint;
TASK:base the base model; TASK:FILE.gguf a file of an export. TASK is the id of a task or its name; of several tasks of
one name it is the newest.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

from gateway.backends import Backends
from gateway.openai.call import Call
from servicekit.errors import InvalidArgument, NotFound, Problem
from tunesmith.eval.v1 import eval_service_pb2
from tunesmith.export.v1 import export_service_pb2, export_service_pb2_grpc
from tunesmith.task.v1 import spec_pb2, task_pb2, task_service_pb2, task_service_pb2_grpc

TASK_ID = re.compile(r"[0-9a-z]{26}")
PART = re.compile(r"(?P<task>.+):(?:(?P<base>base)|checkpoint-(?P<step>[1-9][0-9]{0,17})|(?P<artifact>[^:/]+\.gguf))")
GGUF = ".gguf"
MOST_TASKS, MOST_NAMESAKES = 50, 1000
KINDS = (task_pb2.KIND_FINETUNE, task_pb2.KIND_EXPORT)
TEXT_FORMATS = (spec_pb2.EXPORT_FORMAT_MERGED, spec_pb2.EXPORT_FORMAT_GGUF, spec_pb2.EXPORT_FORMAT_GGUF_BASE)


class Models:
    """Finds and lists what can answer."""

    def __init__(self, backends: Backends) -> None:
        self._tasks = task_service_pb2_grpc.TaskServiceStub(backends.channels["task"])
        self._exports = export_service_pb2_grpc.ExportServiceStub(backends.channels["export"])

    async def find(self, call: Call, name: str) -> eval_service_pb2.GenerateRequest:
        """A request to the model of a name, without a conversation. Raises NotFound, InvalidArgument."""
        if not name:
            raise InvalidArgument(problems=[Problem("model", "name a model; GET /openai/v1/models lists them")])
        found = PART.fullmatch(name)
        task = await self._task_id(call, found["task"] if found else name)
        request = eval_service_pb2.GenerateRequest(task_id=task)
        if found:
            request.base_model = bool(found["base"])
            request.checkpoint_step = int(found["step"] or 0)
            request.artifact = found["artifact"] or ""
        return request

    async def get(self, call: Call, name: str) -> dict[str, Any]:
        """GET models/NAME. Raises NotFound."""
        request = await self.find(call, name)
        task = (await call.ask(self._tasks.GetTask, task_service_pb2.GetTaskRequest(task_id=request.task_id))).task
        known = {f"{task.id}:base", *[document["id"] async for document in self._of_task(call, task)]}
        part = name.rpartition(":")[2] if PART.fullmatch(name) else ""
        full = f"{task.id}:{part}" if part else task.id
        if full not in known:
            raise NotFound(f"the model {name!r} does not exist, or not yet")
        return _document(name, task)

    async def listed(self, call: Call) -> dict[str, Any]:
        """GET models: those of the newest tasks, each followed by its checkpoints, newest first."""
        request = task_service_pb2.ListTasksRequest(page_size=MOST_TASKS, kinds=KINDS)
        tasks = (await call.ask(self._tasks.ListTasks, request)).tasks
        found = await asyncio.gather(*(self._all_of_task(call, task) for task in tasks))
        return {"object": "list", "data": [document for documents in found for document in documents]}

    async def _all_of_task(self, call: Call, task: task_pb2.Task) -> list[dict[str, Any]]:
        return [document async for document in self._of_task(call, task)]

    async def _of_task(self, call: Call, task: task_pb2.Task) -> AsyncIterator[dict[str, Any]]:
        if task.spec.HasField("export"):
            if task.state == task_pb2.STATE_COMPLETED and task.spec.export.format in TEXT_FORMATS:
                for name in await self._export_names(call, task):
                    yield _document(name, task)
            return
        if not _writes(task):
            return
        listing = task_service_pb2.ListCheckpointsRequest(task_id=task.id)
        checkpoints = (await call.ask(self._tasks.ListCheckpoints, listing)).checkpoints
        if checkpoints or task.state == task_pb2.STATE_COMPLETED:
            yield _document(task.id, task)
        for step in sorted({checkpoint.step for checkpoint in checkpoints}, reverse=True):
            yield _document(f"{task.id}:checkpoint-{step}", task)

    async def _export_names(self, call: Call, task: task_pb2.Task) -> list[str]:
        """Of one model the export's id, of several GGUF files theirs."""
        if task.spec.export.format == spec_pb2.EXPORT_FORMAT_MERGED:
            return [task.id] if await self._source_writes(call, task) else []
        request = export_service_pb2.GetExportRequest(task_id=task.id)
        artifacts = (await call.ask(self._exports.GetExport, request)).export.artifacts
        files = [artifact.name for artifact in artifacts if artifact.name.endswith(GGUF)]
        return [*([task.id] if len(files) == 1 else []), *(f"{task.id}:{name}" for name in files)]

    async def _source_writes(self, call: Call, task: task_pb2.Task) -> bool:
        """Whether a merged model writes text; of one whose training is gone that is not known, so it is offered."""
        request = task_service_pb2.GetTaskRequest(task_id=task.spec.export.source_task_id)
        try:
            return _writes((await call.ask(self._tasks.GetTask, request)).task)
        except NotFound:
            return True

    async def _task_id(self, call: Call, name: str) -> str:
        """The id of a task by its id or name."""
        if TASK_ID.fullmatch(name):
            return name
        request = task_service_pb2.ListTasksRequest(page_size=MOST_NAMESAKES, kinds=KINDS, name_contains=name)
        for task in (await call.ask(self._tasks.ListTasks, request)).tasks:
            if task.name == name:
                return str(task.id)
        raise NotFound(f"the model {name!r} does not exist; GET /openai/v1/models lists those that do")


def _writes(task: task_pb2.Task) -> bool:
    """Whether what a fine-tuning task trains writes text."""
    finetune = task.spec.finetune
    classifies = finetune.language_model.objective == spec_pb2.OBJECTIVE_CLASSIFICATION
    return finetune.HasField("language_model") and not classifies


def _document(name: str, task: task_pb2.Task) -> dict[str, Any]:
    created = int(task.create_time.seconds)
    return {"id": name, "object": "model", "created": created, "owned_by": task.owner, "name": task.name}
