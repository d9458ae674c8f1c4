"""The Python SDK: one URL and one token.

    with Client() as client:
        task = client.tasks.create(finetune_request("m", "models/small", "data/train.jsonl", {"learning_rate": 2e-4}))
        for happening in client.tasks.watch(task.id): ...

Requests and answers are the messages of tunesmith.task.v1, trainer.v1, eval.v1 and export.v1.
"""

from tunesmith.client.aio import AsyncClient, AsyncTasks
from tunesmith.client.config import Config, discover
from tunesmith.client.errors import (
    Aborted,
    AlreadyExists,
    ApiError,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Problem,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from tunesmith.client.evaluation import evaluation_parameters, evaluation_request
from tunesmith.client.export import export_request
from tunesmith.client.finetune import dataset_source, finetune_request, parameter_names
from tunesmith.client.generation import generation_parameters, generation_request
from tunesmith.client.operations import FINAL_STATES, ended
from tunesmith.client.sync import Client, Tasks

__all__ = [
    "FINAL_STATES",
    "Aborted",
    "AlreadyExists",
    "ApiError",
    "AsyncClient",
    "AsyncTasks",
    "Client",
    "Config",
    "DeadlineExceeded",
    "FailedPrecondition",
    "Internal",
    "InvalidArgument",
    "NotFound",
    "PermissionDenied",
    "Problem",
    "ResourceExhausted",
    "Tasks",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "dataset_source",
    "discover",
    "ended",
    "evaluation_parameters",
    "evaluation_request",
    "export_request",
    "finetune_request",
    "generation_parameters",
    "generation_request",
    "parameter_names",
]
