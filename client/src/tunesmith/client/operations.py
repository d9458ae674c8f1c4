"""Every call of the SDK, once: its parameters, its request message and what it returns."""

import uuid
from collections.abc import Sequence

from google.protobuf.descriptor import MethodDescriptor

from tunesmith.client.exchange import Operation
from tunesmith.task.v1 import task_pb2, task_service_pb2
from tunesmith.task.v1.event_pb2 import TaskEvent
from tunesmith.task.v1.task_pb2 import Checkpoint, Task
from tunesmith.task.v1.task_service_pb2 import (
    CreateTaskRequest,
    CreateTaskResponse,
    DeleteTaskRequest,
    DeleteTaskResponse,
    GetTaskRequest,
    GetTaskResponse,
    ListCheckpointsRequest,
    ListCheckpointsResponse,
    ListMetricsRequest,
    ListMetricsResponse,
    ListTasksRequest,
    ListTasksResponse,
    MetricSeries,
    ReadLogRequest,
    ReadLogResponse,
    ResumeTaskRequest,
    ResumeTaskResponse,
    StopTaskRequest,
    StopTaskResponse,
    TailLogRequest,
    TailLogResponse,
    WatchTaskRequest,
    WatchTaskResponse,
    WatchTasksRequest,
    WatchTasksResponse,
)
from tunesmith.trainer.v1 import trainer_service_pb2
from tunesmith.trainer.v1.trainer_service_pb2 import (
    BaseModel,
    CheckEnvironmentRequest,
    CheckEnvironmentResponse,
    Device,
    ListBaseModelsRequest,
    ListBaseModelsResponse,
    ListDevicesRequest,
    ListDevicesResponse,
)

FINAL_STATES = frozenset((task_pb2.STATE_STOPPED, task_pb2.STATE_COMPLETED, task_pb2.STATE_FAILED))
DELETED = "task.deleted"

_TASK_SERVICE = task_service_pb2.DESCRIPTOR.services_by_name["TaskService"]
_TRAINER_SERVICE = trainer_service_pb2.DESCRIPTOR.services_by_name["TrainerService"]


def _task_rpc(name: str) -> MethodDescriptor:
    return _TASK_SERVICE.methods_by_name[name]


def create(request: CreateTaskRequest) -> Operation[CreateTaskResponse, Task]:
    """Creates a task. A request without a request_id gets one, so that a repeated call makes no second task."""
    whole = CreateTaskRequest()
    whole.CopyFrom(request)
    whole.request_id = request.request_id or uuid.uuid4().hex
    return Operation(_task_rpc("CreateTask"), whole, CreateTaskResponse, lambda response: response.task)


def get(task_id: str) -> Operation[GetTaskResponse, Task]:
    """Returns one task. Raises NotFound."""
    request = GetTaskRequest(task_id=task_id)
    return Operation(_task_rpc("GetTask"), request, GetTaskResponse, lambda response: response.task)


def list_page(request: ListTasksRequest | None = None) -> Operation[ListTasksResponse, ListTasksResponse]:
    """Returns one page of the tasks that match, with the token of the next."""
    return Operation(
        _task_rpc("ListTasks"), request or ListTasksRequest(), ListTasksResponse, lambda response: response
    )


def stop(task_id: str, *, discard: bool = False) -> Operation[StopTaskResponse, Task]:
    """Asks a task to end, saving a checkpoint first unless discard is set. Raises FailedPrecondition after its end."""
    request = StopTaskRequest(task_id=task_id, discard=discard)
    return Operation(_task_rpc("StopTask"), request, StopTaskResponse, lambda response: response.task, repeatable=False)


def resume(task_id: str, *, checkpoint_step: int = 0) -> Operation[ResumeTaskResponse, Task]:
    """Starts a new run of a stopped or failed task from its newest checkpoint, or from the one of checkpoint_step."""
    request = ResumeTaskRequest(task_id=task_id, checkpoint_step=checkpoint_step)
    method = _task_rpc("ResumeTask")
    return Operation(method, request, ResumeTaskResponse, lambda response: response.task, repeatable=False)


def delete(task_id: str, *, force: bool = False) -> Operation[DeleteTaskResponse, None]:
    """Deletes a task with its log and checkpoints; force stops a running one first. The finished model is kept."""
    request = DeleteTaskRequest(task_id=task_id, force=force)
    return Operation(_task_rpc("DeleteTask"), request, DeleteTaskResponse, lambda _: None, repeatable=False)


def log(task_id: str, *, tail: int = 0, offset: int = 0) -> Operation[ReadLogResponse, ReadLogResponse]:
    """Returns the log as it is now: all of it, the last tail lines, or without the first offset lines."""
    request = ReadLogRequest(task_id=task_id, tail=tail, offset=offset)
    return Operation(_task_rpc("ReadLog"), request, ReadLogResponse, lambda response: response)


def metrics(
    task_id: str, names: Sequence[str] = (), *, max_points: int = 0, after_step: int = 0
) -> Operation[ListMetricsResponse, Sequence[MetricSeries]]:
    """Returns one series per metric, down-sampled to max_points each (0: 1000)."""
    request = ListMetricsRequest(task_id=task_id, names=names, max_points=max_points, after_step=after_step)
    return Operation(_task_rpc("ListMetrics"), request, ListMetricsResponse, lambda response: response.series)


def checkpoints(task_id: str) -> Operation[ListCheckpointsResponse, Sequence[Checkpoint]]:
    """Returns the stored checkpoints, oldest first."""
    request = ListCheckpointsRequest(task_id=task_id)
    method = _task_rpc("ListCheckpoints")
    return Operation(method, request, ListCheckpointsResponse, lambda response: response.checkpoints)


def watch(task_id: str, *, cursor: str = "") -> Operation[WatchTaskResponse, WatchTaskResponse]:
    """Yields what happens to a task until it ends: first a snapshot, or what followed the cursor."""
    request = WatchTaskRequest(task_id=task_id, cursor=cursor)
    return Operation(_task_rpc("WatchTask"), request, WatchTaskResponse, lambda response: response)


def watch_all(*, cursor: str = "") -> Operation[WatchTasksResponse, WatchTasksResponse]:
    """Yields what happens to all of the caller's tasks, without end: first a snapshot of each unfinished one, or what
    followed the cursor.
    """
    request = WatchTasksRequest(cursor=cursor)
    return Operation(_task_rpc("WatchTasks"), request, WatchTasksResponse, lambda response: response)


def follow_log(task_id: str, *, cursor: str = "") -> Operation[TailLogResponse, TailLogResponse]:
    """Yields the log from its start, or from the cursor, as it is written; ends with the task."""
    request = TailLogRequest(task_id=task_id, cursor=cursor)
    return Operation(_task_rpc("TailLog"), request, TailLogResponse, lambda response: response)


def devices() -> Operation[ListDevicesResponse, Sequence[Device]]:
    """Returns the devices that the platform can train on."""
    method = _TRAINER_SERVICE.methods_by_name["ListDevices"]
    return Operation(method, ListDevicesRequest(), ListDevicesResponse, lambda response: response.devices)


def base_models(modality: str = "") -> Operation[ListBaseModelsResponse, Sequence[BaseModel]]:
    """Returns the base models of the catalogue and those found on the machine, of one modality or of all."""
    method = _TRAINER_SERVICE.methods_by_name["ListBaseModels"]
    request = ListBaseModelsRequest(modality=modality)
    return Operation(method, request, ListBaseModelsResponse, lambda response: response.models)


def environment() -> Operation[CheckEnvironmentResponse, CheckEnvironmentResponse]:
    """Returns what training needs and whether it is there."""
    method = _TRAINER_SERVICE.methods_by_name["CheckEnvironment"]
    return Operation(method, CheckEnvironmentRequest(), CheckEnvironmentResponse, lambda response: response)


def ended(event: TaskEvent) -> bool:
    """Whether an event says that its task has ended, or is gone."""
    return event.type == DELETED or (event.HasField("task") and event.task.state in FINAL_STATES)


class Pages:
    """Walks through the pages of a list: next_request() is None after the last one."""

    def __init__(self, request: ListTasksRequest | None) -> None:
        self._request: ListTasksRequest | None = ListTasksRequest()
        self._request.CopyFrom(request or ListTasksRequest())

    def next_request(self) -> ListTasksRequest | None:
        """The request of the next page."""
        return self._request

    def taken(self, page: ListTasksResponse) -> Sequence[Task]:
        """The tasks of a page that has come; moves on to the one after it."""
        if self._request is not None and page.next_page_token:
            self._request.page_token = page.next_page_token
            self._request.offset = 0
        else:
            self._request = None
        return page.tasks
