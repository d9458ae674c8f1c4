"""A task as this surface shows it; what is not set is null."""

import json
from typing import Any

from gateway.finetuning.arguments import GPU_CONFIG, TRAINING_ARGS
from gateway.finetuning.command import COMMAND, equivalent
from gateway.finetuning.create import LABEL_PREFIX
from gateway.guide.views import error_text, percent
from gateway.native.encode import encode_double, encode_timestamp
from parameterkit.values import dataset_name
from tunesmith.task.v1 import task_pb2

# STOPPING is a state of the platform that this surface does not know.
STATUS_OF_STATE = {
    task_pb2.STATE_PENDING: "pending",
    task_pb2.STATE_RUNNING: "running",
    task_pb2.STATE_STOPPING: "running",
    task_pb2.STATE_STOPPED: "stopped",
    task_pb2.STATE_COMPLETED: "completed",
    task_pb2.STATE_FAILED: "failed",
}


def task_document(task: task_pb2.Task) -> dict[str, Any]:
    """The JSON of a task."""
    spec = task.spec.finetune
    return {
        "ID": task.number,
        "CreatedAt": _time(task, "create_time"),
        "UpdatedAt": _time(task, "update_time"),
        "name": task.name,
        "description": task.description or None,
        "userID": task.owner_number or None,
        "status": STATUS_OF_STATE.get(task.state, "pending"),
        "progress": percent(task),
        "baseModel": spec.base_model,
        "datasetPath": dataset_name(spec.dataset),
        "outputPath": spec.output_dir or task.output_dir or None,
        TRAINING_ARGS: task.labels.get(LABEL_PREFIX + TRAINING_ARGS),
        GPU_CONFIG: task.labels.get(LABEL_PREFIX + GPU_CONFIG),
        COMMAND: task.labels.get(LABEL_PREFIX + COMMAND) or equivalent(task),
        "logPath": f"tasks/{task.id}/log.txt" if task.attempt else None,
        "errorMessage": error_text(task),
        "startedAt": _seconds(task, "start_time"),
        "finishedAt": _seconds(task, "end_time"),
        "pid": task.pid or None,
        "metrics": _metrics(task),
    }


def _time(task: Any, field: str) -> str | None:
    return encode_timestamp(getattr(task, field)) if task.HasField(field) else None


def _seconds(task: Any, field: str) -> int | None:
    return int(getattr(task, field).seconds) if task.HasField(field) else None


def _metrics(task: task_pb2.Task) -> str | None:
    values = {name: encode_double(task.metrics[name]) for name in sorted(task.metrics)}
    return json.dumps(values) if values else None
