"""This surface in the OpenAPI document."""

from functools import partial
from typing import Any

from gateway.guide import describe
from gateway.guide.creation import MODALITIES, MODEL_TYPE
from gateway.guide.describe import INTEGER, STARTED, STATUS, TEXT, record, reference
from gateway.native.schemas import Schema
from gateway.training.routes import PREFIX, SURFACE

TAG = "training"
REQUEST, DATASET = "TrainingRequest", "TrainingDataset"
_operation = partial(describe.operation, tag=TAG)


def schemas() -> dict[str, Schema]:
    """The schemas of the surface, by name."""
    dataset = record(
        id=TEXT,
        name=TEXT,
        type=TEXT,
        size=INTEGER,
        samples=INTEGER,
        created_at={"type": "string", "format": "date-time"},
        version=INTEGER,
        sha256=TEXT,
        problems=describe.listed(TEXT),
    )
    return {REQUEST: describe.any_request_schema(SURFACE), DATASET: dataset}


def paths() -> dict[str, Any]:
    """The routes."""
    start = describe.json_body(reference(REQUEST))
    kinds: Schema = {"type": "string", "enum": list(MODALITIES)}
    of_type = [{"name": MODEL_TYPE, "in": "query", "schema": kinds}]
    model = record(id=TEXT, name=TEXT, description=TEXT)
    routes = {
        "/start": {"post": _operation("start", "Start a training", record(task_id=TEXT), requestBody=start)},
        **_task_routes(),
        **_dataset_routes(),
        "/models": {"get": _operation("models", "Base models", describe.listed(model), parameters=of_type)},
        "/image-classifier": _form("image_classifier", "Train an image classifier"),
        "/object-detection": _form("object_detector", "Train an object detector"),
    }
    return {PREFIX + path: operations for path, operations in routes.items()}


def _task_routes() -> dict[str, Any]:
    task = [describe.path_parameter("task_id")]
    many = [describe.limit_parameter()]
    status, statuses = reference(STATUS), describe.listed(reference(STATUS))
    checkpoint = record(name=TEXT, path=TEXT, step=INTEGER, loss={"type": ["number", "null"]}, size=INTEGER)
    checkpoints = record(checkpoints=describe.listed(checkpoint))
    return {
        "/status/{task_id}": {"get": _operation("status", "Status of a task", status, parameters=task)},
        "/stop/{task_id}": {"post": _operation("stop", "Stop a task", status, parameters=task)},
        "/tasks": {"get": _operation("tasks", "Tasks that have not ended", statuses, parameters=many)},
        "/history": {"get": _operation("history", "Tasks that have ended", statuses, parameters=many)},
        "/checkpoints/{task_id}": {
            "get": _operation("checkpoints", "Checkpoints of a task", checkpoints, parameters=task)
        },
        "/download/{task_id}": {
            "get": describe.zipped("download", "The finished model as a ZIP", TAG, parameters=task)
        },
    }


def _dataset_routes() -> dict[str, Any]:
    named = describe.form_body("file", {"name": TEXT, "type": {**TEXT, "default": "llm"}})
    many = [describe.limit_parameter()]
    dataset = [describe.path_parameter("dataset_id")]
    deleted = record(success={"type": "boolean"}, message=TEXT)
    return {
        "/datasets/upload": {
            "post": _operation("upload_dataset", "Upload a dataset", reference(DATASET), requestBody=named)
        },
        "/datasets": {
            "get": _operation("datasets", "Uploaded datasets", describe.listed(reference(DATASET)), parameters=many)
        },
        "/datasets/{dataset_id}": {
            "delete": _operation("delete_dataset", "Delete a dataset", deleted) | {"parameters": dataset}
        },
    }


def _form(modality: str, summary: str) -> dict[str, Any]:
    body = describe.training_form(SURFACE, modality)
    return {"post": _operation(modality, summary, reference(STARTED), requestBody=body)}
