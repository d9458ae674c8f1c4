"""What the six routes do: calls of the task service, answered in this surface's terms."""

import secrets
from typing import Any

from gateway import http
from gateway.backends import Backends
from gateway.finetuning.call import MOST, Call
from gateway.finetuning.create import Creation, read_document
from gateway.finetuning.views import STATUS_OF_STATE, task_document
from gateway.settings import GatewaySettings
from servicekit.errors import FailedPrecondition, InvalidArgument, NotFound, Problem, TunesmithError, Unauthenticated
from tunesmith.task.v1 import task_pb2, task_service_pb2, task_service_pb2_grpc
from tunesmith.task.v1.task_service_pb2 import ListTasksRequest

Answer = tuple[Any, str]

PAGE_SIZE, LARGEST_PAGE = 10, 100
_ORDERS = {
    "created_at": task_service_pb2.TASK_ORDER_CREATE_TIME,
    "updated_at": task_service_pb2.TASK_ORDER_UPDATE_TIME,
    "name": task_service_pb2.TASK_ORDER_NAME,
    "started_at": task_service_pb2.TASK_ORDER_START_TIME,
    # Numbers are given in the order of creation.
    "id": task_service_pb2.TASK_ORDER_CREATE_TIME,
    "ID": task_service_pb2.TASK_ORDER_CREATE_TIME,
}
_STATES = {
    status: [state for state, shown in STATUS_OF_STATE.items() if shown == status]
    for status in STATUS_OF_STATE.values()
}


class FinetuningTasks:
    """What the routes do."""

    def __init__(self, backends: Backends, settings: GatewaySettings) -> None:
        self._tasks = task_service_pb2_grpc.TaskServiceStub(backends.channels["task"])
        self._settings = settings

    async def _task(self, call: Call) -> task_pb2.Task:
        request = task_service_pb2.GetTaskRequest(number=call.number())
        response = await self._call(self._tasks.GetTask, request, call)
        if not response.task.spec.HasField("finetune"):
            raise NotFound("no fine-tuning task has this number")
        task: task_pb2.Task = response.task
        return task

    async def _call(self, method: Any, request: Any, call: Call) -> Any:
        return await method(request, timeout=self._settings.request_seconds, metadata=call.metadata)

    async def create_task(self, call: Call) -> Answer:
        """POST createTask."""
        body = await http.read_body(call.http, self._settings.max_body_bytes, self._settings.request_seconds)
        creation = Creation(read_document(body), self._settings.finetuning_command)
        if creation.problems:
            creation.only_check()
        # The channel may try a call again; with an id it still makes one task.
        creation.request.request_id = call.http.header(b"idempotency-key")[:128] or secrets.token_hex(16)
        try:
            response = await self._call(self._tasks.CreateTask, creation.request, call)
        except Unauthenticated:
            raise
        except TunesmithError as error:
            problems = [*creation.problems, *creation.service_problems(error.problems)]
            if problems or isinstance(error, NotFound):
                raise InvalidArgument(error.message if not problems else "", problems=problems) from None
            raise
        if creation.problems:
            raise InvalidArgument(problems=creation.problems)
        return {"ID": response.task.number}, "任务创建成功，已在后台开始执行"

    async def delete_task(self, call: Call) -> Answer:
        """DELETE deleteTask; a running task is stopped first."""
        task = await self._task(call)
        await self._call(self._tasks.DeleteTask, task_service_pb2.DeleteTaskRequest(task_id=task.id, force=True), call)
        return None, "删除成功"

    async def stop_task(self, call: Call) -> Answer:
        """POST stopTask."""
        task = await self._task(call)
        try:
            await self._call(self._tasks.StopTask, task_service_pb2.StopTaskRequest(task_id=task.id), call)
        except FailedPrecondition:
            raise FailedPrecondition("任务未在运行中") from None
        return None, "任务已停止"

    async def get_task(self, call: Call) -> Answer:
        """GET getTask."""
        return task_document(await self._task(call)), "成功"

    async def list_tasks(self, call: Call) -> Answer:
        """GET getTaskList."""
        page = call.integer("page", 1)
        size = call.integer("pageSize", PAGE_SIZE)
        page, size = max(page, 1), min(size or PAGE_SIZE, LARGEST_PAGE)
        if (page - 1) * size > MOST:
            call.problems.append(Problem("page", "过大"))
        request = ListTasksRequest(
            page_size=size,
            states=call.choice("status", _STATES, []),
            kinds=[task_pb2.KIND_FINETUNE],
            name_contains=call.text("name"),
            base_model_contains=call.text("baseModel"),
            keyword=call.text("keyword"),
            order_by=call.choice("orderKey", _ORDERS, task_service_pb2.TASK_ORDER_CREATE_TIME),
            # Newest first, unless an order is named without saying that it descends.
            ascending=not call.truth("desc", default=not call.text("orderKey")),
            with_total=True,
        )
        call.require_sound()
        request.offset = (page - 1) * size
        response = await self._call(self._tasks.ListTasks, request, call)
        tasks = [task_document(task) for task in response.tasks]
        return {"list": tasks, "total": response.total_size, "page": page, "pageSize": size}, "获取成功"

    async def read_log(self, call: Call) -> Answer:
        """GET getTaskLog."""
        lines, offset = call.integer("lines", 0), call.integer("offset", 0)
        task = await self._task(call)
        request = task_service_pb2.ReadLogRequest(task_id=task.id, tail=lines, offset=offset)
        response = await self._call(self._tasks.ReadLog, request, call)
        return "\n".join(line.text for line in response.lines), "获取成功"
