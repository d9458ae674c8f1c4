"""Tasks, datasets, models and checkpoints as the training guide's routes show them."""

import math
from collections.abc import Mapping
from typing import Any

from gateway.native.encode import encode_timestamp
from tunesmith.task.v1 import dataset_service_pb2, spec_pb2, task_pb2

STATUS_OF_STATE = {
    task_pb2.STATE_PENDING: "pending",
    task_pb2.STATE_RUNNING: "running",
    task_pb2.STATE_STOPPING: "running",
    task_pb2.STATE_STOPPED: "cancelled",
    task_pb2.STATE_COMPLETED: "completed",
    task_pb2.STATE_FAILED: "failed",
}
ACTIVE = (task_pb2.STATE_PENDING, task_pb2.STATE_RUNNING, task_pb2.STATE_STOPPING)
ENDED = (task_pb2.STATE_STOPPED, task_pb2.STATE_COMPLETED, task_pb2.STATE_FAILED)
_MESSAGES = {
    task_pb2.STATE_PENDING: "waiting for a worker",
    task_pb2.STATE_STOPPING: "saving a checkpoint and stopping",
    task_pb2.STATE_STOPPED: "cancelled",
    task_pb2.STATE_COMPLETED: "training completed",
    task_pb2.STATE_FAILED: "training failed",
}


def status_document(task: task_pb2.Task) -> dict[str, Any]:
    """A TrainingStatus; what is not known is null."""
    progress, metrics = task.progress, finite(task.metrics)
    epochs = _epochs(task)
    return {
        "success": task.state != task_pb2.STATE_FAILED,
        "message": _MESSAGES.get(task.state) or progress.phase or "training",
        "error": error_text(task),
        "task_id": task.id,
        "status": STATUS_OF_STATE.get(task.state, "pending"),
        "progress": percent(task),
        "current_epoch": min(math.ceil(progress.epoch), epochs) if epochs else math.ceil(progress.epoch),
        "total_epochs": epochs or None,
        "current_step": progress.step,
        "total_steps": progress.total_steps or None,
        "loss": metrics.get("loss"),
        "learning_rate": metrics.get("learning_rate"),
        "metrics": metrics,
        "eta_seconds": progress.eta_seconds if task.state in ACTIVE and progress.eta_seconds > 0 else None,
        "started_at": _time(task, "start_time"),
        "completed_at": _time(task, "end_time"),
    }


def percent(task: task_pb2.Task) -> float:
    """Share of the work done, 0 to 100."""
    if task.state == task_pb2.STATE_COMPLETED:
        return 100.0
    share = task.progress.percent
    return min(max(share, 0.0), 100.0) if math.isfinite(share) else 0.0


def finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics by name; what is no number in JSON is null."""
    return {name: metrics[name] if math.isfinite(metrics[name]) else None for name in sorted(metrics)}


def error_text(task: task_pb2.Task) -> str | None:
    """Why a task failed, with every problem that its message does not tell; None when all is well."""
    if not task.HasField("error"):
        return None
    message = task.error.message
    lines = [message, *(problem for problem in task.error.problems if problem not in message)]
    return "\n".join(line for line in lines if line) or task.error.reason or None


def dataset_document(dataset: dataset_service_pb2.Dataset) -> dict[str, Any]:
    """An uploaded dataset."""
    return {
        "id": dataset.id,
        "name": dataset.name,
        "type": dataset.type,
        "size": dataset.size,
        "samples": dataset.samples,
        "created_at": encode_timestamp(dataset.create_time),
        "version": dataset.version,
        "sha256": dataset.sha256,
        "problems": list(dataset.problems),
    }


def checkpoint_document(checkpoint: task_pb2.Checkpoint) -> dict[str, Any]:
    """A stored checkpoint; path is its prefix in the object store."""
    return {
        "name": f"checkpoint-{checkpoint.step}",
        "path": checkpoint.prefix,
        "step": checkpoint.step,
        "loss": checkpoint.loss if checkpoint.HasField("loss") and math.isfinite(checkpoint.loss) else None,
        "size": checkpoint.size,
        "created_at": encode_timestamp(checkpoint.create_time),
    }


def adapter_document(task: task_pb2.Task) -> dict[str, Any]:
    """The adapter that a completed task has left; config is named as in PEFT's adapter_config.json."""
    spec = task.spec.finetune
    lora = spec.language_model.lora
    return {
        "path": task.output_dir,
        "name": task.name,
        "task_id": task.id,
        "config": {
            "peft_type": "LORA",
            "base_model_name_or_path": spec.base_model,
            "r": lora.r,
            "lora_alpha": lora.alpha,
            "lora_dropout": lora.dropout,
            "target_modules": list(lora.target_modules) or "all-linear",
            "bias": lora.bias,
        },
    }


def has_adapter(task: task_pb2.Task) -> bool:
    """Whether a task that is completed has left an adapter; one that was merged too lies beside the merged model."""
    return task.spec.finetune.language_model.method in (spec_pb2.METHOD_LORA, spec_pb2.METHOD_QLORA)


def _epochs(task: task_pb2.Task) -> int:
    """Epochs in all, as far as they are known: max_steps wins over them."""
    training, progress = task.spec.finetune.training, task.progress
    if training.max_steps <= 0:
        return math.ceil(training.num_train_epochs)
    return math.ceil(progress.epoch / progress.step * progress.total_steps - 1e-9) if progress.step else 0


def _time(task: Any, field: str) -> str | None:
    return encode_timestamp(getattr(task, field)) if task.HasField(field) else None
