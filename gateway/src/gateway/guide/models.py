"""What the guide's routes do with finished models: download, merge, ask."""

import asyncio
import secrets
from typing import Any

from starlette.responses import Response

from gateway.backends import Backends
from gateway.download import Download, Source, attachment
from gateway.guide import errors, views
from gateway.guide.call import Call
from servicekit.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, Problem, Unavailable
from tunesmith.eval.v1 import eval_service_pb2, eval_service_pb2_grpc
from tunesmith.export.v1 import export_service_pb2, export_service_pb2_grpc
from tunesmith.task.v1 import spec_pb2, task_pb2, task_service_pb2, task_service_pb2_grpc

MERGE_FAILED, MERGE_GOES_ON = 500, 202
SURFACE = "llm_finetuning"
TOO_LONG = "CONVERSATION_TOO_LONG"
_RETRY_SECONDS = 1.0
_NAME_LENGTH = 200
_NAMES = {"spec.export.output_dir": "output_path"}


class GuideModels:
    """Finished models of fine-tuning tasks; which task may be asked for, the callers have checked."""

    def __init__(self, backends: Backends) -> None:
        self._tasks = task_service_pb2_grpc.TaskServiceStub(backends.channels["task"])
        self._exports = export_service_pb2_grpc.ExportServiceStub(backends.channels["export"])
        self._evaluations = eval_service_pb2_grpc.EvalServiceStub(backends.channels["eval"])

    async def zipped(self, call: Call, task: task_pb2.Task, name: str, *, adapter_only: bool) -> Response:
        """The finished model of a task, or its adapter alone, as a ZIP of that name.

        Raises FailedPrecondition for an adapter of a task that has trained none.
        """
        request = export_service_pb2.DownloadModelRequest(task_id=task.id, adapter_only=adapter_only)
        stream = self._exports.DownloadModel(request, metadata=call.metadata)
        source = await Source.open(stream, call.settings.request_seconds)
        return Download(source, {"content-type": "application/zip", "content-disposition": attachment(name)})

    async def answer(self, call: Call, task: task_pb2.Task, prompt: str, max_tokens: int | None) -> str:
        """What the model of a task says to a prompt. Raises InvalidArgument for one too long, DeadlineExceeded."""
        request = eval_service_pb2.GenerateRequest(
            task_id=task.id,
            messages=[eval_service_pb2.Message(role="user", content=prompt)],
            max_tokens=max_tokens,
        )
        stream: Any = self._evaluations.Generate(request, metadata=call.metadata)
        seconds = call.settings.wait_seconds
        try:
            async with asyncio.timeout(seconds):
                return "".join([response.text async for response in stream])
        except TimeoutError:
            raise DeadlineExceeded(f"the model did not answer within {seconds:g} seconds") from None
        except InvalidArgument as error:
            raise _about_prompt(error) from None
        finally:
            stream.cancel()

    async def merge(self, call: Call, task: task_pb2.Task, output_path: str) -> Any:
        """Merges the adapter of a task into a directory and waits for that; the guide's answer.

        Raises InvalidArgument by the guide's names, FailedPrecondition when there is nothing to merge.
        """
        if not views.has_adapter(task):
            raise FailedPrecondition(f"task {task.id} has no adapter to merge; its model lies in {task.output_dir}")
        export = await self._start_merge(call, task, output_path)
        try:
            async with asyncio.timeout(call.settings.wait_seconds):
                export = await self._ended(call, export.id)
        except TimeoutError:
            return errors.answer({"success": False, **_going_on(export.id)}, MERGE_GOES_ON)
        if export.state == task_pb2.STATE_COMPLETED:
            return {"success": True, "path": export.output_dir or output_path}
        text = views.error_text(export) or "the merge was stopped"
        return errors.answer({"success": False, "error": export.error.reason, "message": text}, MERGE_FAILED)

    async def _start_merge(self, call: Call, task: task_pb2.Task, output_path: str) -> task_pb2.Task:
        export = spec_pb2.ExportSpec(
            source_task_id=task.id, format=spec_pb2.EXPORT_FORMAT_MERGED, output_dir=output_path
        )
        request = task_service_pb2.CreateTaskRequest(
            name=f"merge_{task.name}"[:_NAME_LENGTH],
            spec=spec_pb2.TaskSpec(export=export),
            request_id=call.repeat_key() or secrets.token_hex(16),
            labels={"surface": SURFACE},
        )
        try:
            response = await call.ask(self._tasks.CreateTask, request)
        except InvalidArgument as error:
            problems = [Problem(_NAMES.get(problem.field, "task_id"), problem.message) for problem in error.problems]
            raise InvalidArgument("" if problems else error.message, reason=error.reason, problems=problems) from None
        created: task_pb2.Task = response.task
        return created

    async def _ended(self, call: Call, task_id: str) -> task_pb2.Task:
        """The task when it has ended; a task service that restarts is waited for."""
        while True:
            try:
                request = task_service_pb2.WatchTaskRequest(task_id=task_id)
                async for response in self._tasks.WatchTask(request, metadata=call.metadata):
                    if response.event.HasField("task") and response.event.task.state in views.ENDED:
                        break
                found = await call.ask(self._tasks.GetTask, task_service_pb2.GetTaskRequest(task_id=task_id))
                task: task_pb2.Task = found.task
                if task.state in views.ENDED:
                    return task
            except (Unavailable, DeadlineExceeded):
                pass
            await asyncio.sleep(_RETRY_SECONDS)


def _about_prompt(error: InvalidArgument) -> InvalidArgument:
    """The error by the guide's name of what the service calls messages."""
    if error.reason != TOO_LONG:
        return error
    message = error.message.removeprefix("messages: ")
    return InvalidArgument(reason=error.reason, problems=[Problem("prompt", message)])


def _going_on(task_id: str) -> dict[str, str]:
    message = f"the merge goes on as task {task_id}; GET /v1/exports/{task_id} tells when it is done"
    return {"detail": message, "task_id": task_id}
