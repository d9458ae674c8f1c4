"""Events of tasks as messages of the WebSocket: {"type", "data", ...} with the figures of progress beside data."""

from typing import Any

from gateway.guide.views import ENDED, error_text, finite, percent, status_document
from tunesmith.task.v1 import event_pb2, task_pb2

PROGRESS, STATUS, ERROR = "progress", "status", "error"
DELETED = "task.deleted"
HEARTBEAT: dict[str, Any] = {"type": "heartbeat"}
PONG: dict[str, Any] = {"type": "pong"}

Message = dict[str, Any]


class Board:
    """What is known of the tasks that are watched, from their events; it forgets those that have ended."""

    def __init__(self) -> None:
        self._tasks: dict[str, task_pb2.Task] = {}

    def messages(self, event: event_pb2.TaskEvent) -> list[Message]:
        """What there is to say after an event; of a failed task also what is wrong."""
        kind = event.WhichOneof("payload")
        if kind == "task":
            return self._changed(event.task, gone=event.type == DELETED)
        task = self._tasks.get(event.task_id)
        if task is None or kind not in ("progress", "metrics"):
            return []
        if kind == "progress":
            task.progress.CopyFrom(event.progress)
        for point in event.metrics.points:
            task.metrics[point.name] = point.value
        return [_about(task, PROGRESS)]

    def _changed(self, task: task_pb2.Task, *, gone: bool) -> list[Message]:
        if not task.spec.HasField("finetune"):
            return []
        if gone or task.state in ENDED:
            self._tasks.pop(task.id, None)
        else:
            self._tasks[task.id] = task
        failure = [_about(task, ERROR)] if task.state == task_pb2.STATE_FAILED else []
        return [_about(task, STATUS), *failure]


def failure(message: str) -> Message:
    """An error of the connection itself."""
    return {"type": ERROR, "data": {"error": message, "message": message}}


def _about(task: task_pb2.Task, kind: str) -> Message:
    metrics = finite(task.metrics)
    document = status_document(task)
    if kind == ERROR:
        document["message"] = error_text(task) or document["message"]
    return {
        "type": kind,
        "data": document,
        "task_id": task.id,
        "progress": percent(task),
        "epoch": task.progress.epoch,
        "step": task.progress.step,
        "loss": metrics.get("loss"),
        "metrics": metrics,
    }
