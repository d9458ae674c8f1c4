"""/api/training: the guide's requests, defaults, ranges, the shape of answers and errors (T7, T8, T13, T15)."""

import re
from typing import Any

import pytest
from starlette.routing import Mount, Route

from gateway.backends import connect
from gateway.guide.spool import Spool
from gateway.llm_finetuning.routes import llm_finetuning_routes
from gateway.settings import GatewaySettings
from gateway.setup import describe
from gateway.tests.conftest import TASK_ID, Gateway
from gateway.training.routes import training_routes
from servicekit.errors import (
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    Problem,
    Unavailable,
    Unimplemented,
)
from tunesmith.task.v1 import spec_pb2, task_pb2
from tunesmith.task.v1.task_service_pb2 import CreateTaskRequest

LLM = {"model_type": "llm", "base_model": "llama-2-7b", "dataset_path": "/datasets/train.jsonl"}
# The guide's own request, word for word (T7).
RESNET = {
    "model_type": "image_classifier",
    "base_model": "resnet50",
    "dataset_path": "/datasets/my_images",
    "epochs": 15,
    "batch_size": 16,
    "learning_rate": 0.0001,
}


async def start(gateway: Gateway, **fields: Any) -> tuple[int, Any]:
    response = await gateway.client.post("/api/training/start", json={**LLM, **fields})
    return response.status_code, response.json()


def created(gateway: Gateway) -> CreateTaskRequest:
    request = gateway.tasks.requests[-1]
    assert isinstance(request, CreateTaskRequest)
    return request


def details(document: Any) -> dict[str, str]:
    """Messages of a 422 by the names of its fields."""
    assert list(document) == ["detail"]
    assert all(set(item) == {"loc", "msg", "type"} for item in document["detail"])
    return {".".join(item["loc"]): item["msg"] for item in document["detail"]}


async def test_a_language_model_gets_the_guides_defaults(gateway: Gateway) -> None:
    status, document = await start(gateway)
    assert (status, document) == (200, {"task_id": TASK_ID})
    request = created(gateway)
    spec = request.spec.finetune
    training = spec.training
    assert (spec.base_model, spec.dataset.path, spec.output_dir) == ("llama-2-7b", "/datasets/train.jsonl", "")
    assert (training.num_train_epochs, training.per_device_train_batch_size) == (10, 8)
    assert (training.learning_rate, training.warmup_steps, training.weight_decay) == (5e-5, 100, 0.01)
    assert (training.gradient_accumulation_steps, training.eval_steps, training.save_steps) == (1, 500, 500)
    assert training.fp16
    assert "finetune.training.learning_rate" in request.default_fields
    assert request.labels["surface"] == "training"
    assert re.fullmatch(r"llama-2-7b_\d{8}_\d{6}", request.name)


async def test_every_field_of_the_request_is_taken(gateway: Gateway) -> None:
    fields = {
        "output_dir": "/models/out",
        "epochs": 2,
        "batch_size": 3,
        "learning_rate": 1e-3,
        "warmup_steps": 7,
        "weight_decay": 0.1,
        "gradient_accumulation_steps": 5,
        "eval_steps": 11,
        "save_steps": 13,
        "fp16": False,
        "resume_from_checkpoint": "/models/out/checkpoint-10",
        "max_grad_norm": 0.5,
        "seed": 9,
        "name": "mine",
    }
    assert (await start(gateway, **fields))[0] == 200
    request = created(gateway)
    spec, training = request.spec.finetune, request.spec.finetune.training
    assert (request.name, spec.output_dir, spec.resume_from_checkpoint) == (
        "mine",
        "/models/out",
        "/models/out/checkpoint-10",
    )
    assert (training.num_train_epochs, training.per_device_train_batch_size, training.learning_rate) == (2, 3, 1e-3)
    assert (training.warmup_steps, training.weight_decay, training.gradient_accumulation_steps) == (7, 0.1, 5)
    assert (training.eval_steps, training.save_steps, training.fp16, training.seed) == (11, 13, False, 9)
    assert training.max_grad_norm == 0.5


@pytest.mark.parametrize(
    ("path", "kind", "value"),
    [
        ("/datasets/x", "path", "/datasets/x"),
        ("0" * 26, "dataset_id", "0" * 26),
        ("s3://bucket/data.jsonl", "uri", "s3://bucket/data.jsonl"),
    ],
)
async def test_a_dataset_is_a_path_an_id_or_an_address(gateway: Gateway, path: str, kind: str, value: str) -> None:
    assert (await start(gateway, dataset_path=path))[0] == 200
    dataset = created(gateway).spec.finetune.dataset
    assert (dataset.WhichOneof("source"), getattr(dataset, kind)) == (kind, value)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("epochs", 0, "[1, 100]"),
        ("epochs", 101, "[1, 100]"),
        ("batch_size", 65, "[1, 64]"),
        ("batch_size", 2.5, "whole number"),
        ("learning_rate", 0.1, "[1e-07, 0.01]"),
        ("learning_rate", "fast", "number"),
        ("gradient_accumulation_steps", 65, "[1, 64]"),
        ("fp16", "yes", "true or false"),
        ("model_type", "speech", "image_classifier"),
        ("model_type", None, "must be given"),
        ("base_model", None, "must be given"),
        ("dataset_path", "", "must be given"),
        ("name", 5, "text"),
        ("epoch", 3, "epochs"),
    ],
)
async def test_each_wrong_field_is_named(gateway: Gateway, field: str, value: Any, says: str) -> None:
    status, document = await start(gateway, **{field: value})
    assert status == 422
    found = details(document)
    assert list(found) == [f"body.{field}"]
    assert says in found[f"body.{field}"]
    assert not gateway.tasks.tasks, "nothing was created"


async def test_all_problems_come_at_once_those_of_the_services_too(gateway: Gateway) -> None:
    gateway.tasks.spec_problems = [
        Problem("spec.finetune.dataset.path", "/datasets/train.jsonl does not exist"),
        Problem("spec.finetune.training.save_steps", "is too small"),
    ]
    status, document = await start(gateway, epochs=0, save_steps=1)
    assert status == 422
    assert set(details(document)) == {"body.epochs", "body.dataset_path", "body.save_steps"}
    assert created(gateway).validate_only
    status, document = await start(gateway)
    assert (status, set(details(document))) == (422, {"body.dataset_path", "body.save_steps"})


async def test_the_image_example_is_read_in_full_before_it_is_refused(gateway: Gateway) -> None:
    """T7: what cannot be trained yet is 501, in the surface's shape."""
    gateway.tasks.error = Unimplemented("training of image-classifier models is not available yet")
    response = await gateway.client.post("/api/training/start", json=RESNET)
    assert response.status_code == 501
    assert response.json() == {"detail": "training of image-classifier models is not available yet"}
    request = created(gateway)
    assert request.spec.finetune.WhichOneof("modality") == "image_classifier"
    assert request.spec.finetune.training.num_train_epochs == 15
    assert not [path for path in request.default_fields if "language_model" in path]
    response = await gateway.client.post("/api/training/start", json={**RESNET, "epochs": 0, "lora_r": 8})
    assert response.status_code == 422
    assert set(details(response.json())) == {"body.epochs", "body.lora_r"}


@pytest.mark.parametrize(
    ("model_type", "field", "size"),
    [
        ("image_classifier", "image_size", 224),
        ("object_detector", "image_size", 640),
        ("text_to_image", "resolution", 512),
    ],
)
async def test_pictures_have_a_size(gateway: Gateway, model_type: str, field: str, size: int) -> None:
    response = await gateway.client.post("/api/training/start", json={**RESNET, "model_type": model_type, field: size})
    assert response.status_code == 200
    spec = created(gateway).spec.finetune
    assert getattr(getattr(spec, model_type), field) == size
    response = await gateway.client.post("/api/training/start", json={**RESNET, "model_type": model_type, field: 5})
    assert (response.status_code, list(details(response.json()))) == (422, [f"body.{field}"])


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'{"base_model": "\\ud800"}', b"\xff"])
async def test_what_is_no_json_object_is_422(gateway: Gateway, body: bytes) -> None:
    response = await gateway.client.post("/api/training/start", content=body)
    assert response.status_code == 422
    (detail,) = response.json()["detail"]
    assert (detail["loc"], detail["type"]) == (["body"], "json_invalid")


async def test_a_repeated_creation_makes_one_task(gateway: Gateway) -> None:
    await gateway.client.post("/api/training/start", json=LLM, headers={"idempotency-key": "abc"})
    assert created(gateway).request_id == "abc"
    await gateway.client.post("/api/training/start", json=LLM)
    assert len(created(gateway).request_id) == 32


STATUS_FIELDS = [
    "success",
    "message",
    "error",
    "task_id",
    "status",
    "progress",
    "current_epoch",
    "total_epochs",
    "current_step",
    "total_steps",
    "loss",
    "learning_rate",
    "metrics",
    "eta_seconds",
    "started_at",
    "completed_at",
]


async def test_the_status_of_a_running_task(gateway: Gateway) -> None:
    task = gateway.tasks.add(metrics={"loss": 1.25, "learning_rate": 1e-4, "odd": float("nan")})
    task.spec.finetune.training.num_train_epochs = 3
    task.progress.MergeFrom(task_pb2.Progress(step=7, total_steps=20, epoch=1.05, percent=35, eta_seconds=12.5))
    task.start_time.FromJsonString("2026-01-02T03:04:05Z")
    response = await gateway.client.get(f"/api/training/status/{TASK_ID}")
    document = response.json()
    assert (response.status_code, list(document)) == (200, STATUS_FIELDS)
    assert (document["success"], document["status"], document["error"]) == (True, "running", None)
    assert (document["progress"], document["current_epoch"], document["total_epochs"]) == (35, 2, 3)
    assert (document["current_step"], document["total_steps"], document["eta_seconds"]) == (7, 20, 12.5)
    assert (document["loss"], document["learning_rate"]) == (1.25, 1e-4)
    assert document["metrics"] == {"learning_rate": 1e-4, "loss": 1.25, "odd": None}
    assert (document["started_at"], document["completed_at"]) == ("2026-01-02T03:04:05Z", None)


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (task_pb2.STATE_PENDING, "pending"),
        (task_pb2.STATE_RUNNING, "running"),
        (task_pb2.STATE_STOPPING, "running"),
        (task_pb2.STATE_STOPPED, "cancelled"),
        (task_pb2.STATE_COMPLETED, "completed"),
        (task_pb2.STATE_FAILED, "failed"),
    ],
)
async def test_states_and_the_two_lists(gateway: Gateway, state: Any, status: str) -> None:
    gateway.tasks.add(state=state, error=task_pb2.TaskError(message="no memory", problems=["batch down"]))
    document = (await gateway.client.get(f"/api/training/status/{TASK_ID}")).json()
    assert document["status"] == status
    assert document["success"] is (status != "failed")
    assert document["error"] == "no memory\nbatch down"
    ended = status in ("cancelled", "completed", "failed")
    assert len((await gateway.client.get("/api/training/tasks")).json()) == (0 if ended else 1)
    assert [item["status"] for item in (await gateway.client.get("/api/training/history")).json()] == [status] * ended


async def test_max_steps_win_over_epochs_in_the_status_too(gateway: Gateway) -> None:
    task = gateway.tasks.add(progress=task_pb2.Progress(step=10, total_steps=20, epoch=2.5))
    task.spec.finetune.training.max_steps = 20
    assert (await gateway.client.get(f"/api/training/status/{TASK_ID}")).json()["total_epochs"] == 5


async def test_stop_answers_the_status(gateway: Gateway) -> None:
    gateway.tasks.add()
    response = await gateway.client.post(f"/api/training/stop/{TASK_ID}")
    assert (response.status_code, list(response.json())) == (200, STATUS_FIELDS)
    assert gateway.tasks.tasks[TASK_ID].state == task_pb2.STATE_STOPPING
    gateway.tasks.tasks[TASK_ID].state = task_pb2.STATE_STOPPED
    response = await gateway.client.post(f"/api/training/stop/{TASK_ID}")
    assert (response.status_code, response.json()) == (400, {"detail": "the task has ended"})


async def test_checkpoints(gateway: Gateway) -> None:
    gateway.tasks.add()
    document = (await gateway.client.get(f"/api/training/checkpoints/{TASK_ID}")).json()
    (checkpoint,) = document["checkpoints"]
    assert (checkpoint["name"], checkpoint["step"], checkpoint["loss"], checkpoint["size"]) == (
        "checkpoint-10",
        10,
        1.5,
        7,
    )


async def test_models_by_type(gateway: Gateway) -> None:
    response = await gateway.client.get("/api/training/models", params={"model_type": "llm"})
    assert response.json() == [{"id": "llama-2-7b", "name": "LLaMA 2 7B", "description": "language_model"}]
    assert (await gateway.client.get("/api/training/models")).json()[0]["description"] == "any"
    response = await gateway.client.get("/api/training/models", params={"model_type": "speech"})
    assert (response.status_code, list(details(response.json()))) == (422, ["query.model_type"])


async def test_datasets_are_uploaded_listed_and_deleted(gateway: Gateway) -> None:
    files = {"file": ("train.jsonl", b'{"instruction": "a", "response": "b"}\n' * 40_000)}
    fields = {"name": "mine", "type": "llm"}
    response = await gateway.client.post("/api/training/datasets/upload", files=files, data=fields)
    assert response.status_code == 200
    document = response.json()
    assert {"id", "name", "type", "size", "samples", "created_at"} <= set(document)
    assert (document["name"], document["type"], document["size"]) == ("mine", "llm", 40_000 * 38)
    assert gateway.datasets.headers[0].file_name == "train.jsonl"
    assert gateway.datasets.contents[0] == files["file"][1]
    assert gateway.datasets.largest_part <= 1024 * 1024
    assert gateway.datasets.metadata["authorization"].startswith("Bearer ")
    assert len((await gateway.client.get("/api/training/datasets")).json()) == 1
    assert (await gateway.client.get("/api/training/datasets", params={"type": "image"})).json() == []
    response = await gateway.client.delete(f"/api/training/datasets/{document['id']}")
    assert (response.status_code, response.json()["success"]) == (200, True)
    response = await gateway.client.delete("/api/training/datasets/unknown")
    assert (response.status_code, response.json()) == (404, {"detail": "there is no dataset unknown"})


async def test_an_image_form_is_checked_stored_and_started(gateway: Gateway) -> None:
    fields = {"base_model": "resnet50", "epochs": "15", "learning_rate": "1e-4", "fp16": "false", "image_size": "224"}
    files = {"dataset": ("images.zip", b"PK")}
    response = await gateway.client.post("/api/training/image-classifier", files=files, data=fields)
    assert response.status_code == 200
    assert response.json() == {
        "success": True,
        "message": "training started",
        "error": None,
        "task_id": TASK_ID,
        "status": "pending",
    }
    assert gateway.datasets.headers[0].type == "image_classifier"
    spec = created(gateway).spec.finetune
    assert (spec.dataset.dataset_id, spec.training.num_train_epochs, spec.training.fp16) == ("0" * 26, 15, False)
    assert spec.image_classifier.image_size == 224


async def test_a_form_that_cannot_be_trained_stores_nothing(gateway: Gateway) -> None:
    files = {"dataset": ("images.zip", b"PK")}
    response = await gateway.client.post("/api/training/object-detection", files=files, data={"epochs": "0"})
    assert response.status_code == 422
    assert set(details(response.json())) == {"body.base_model", "body.epochs"}
    gateway.tasks.error = Unimplemented("training of object-detector models is not available yet")
    response = await gateway.client.post("/api/training/object-detection", files=files, data={"base_model": "yolov8n"})
    assert (response.status_code, response.json()) == (501, {"detail": gateway.tasks.error.message})
    assert not gateway.datasets.headers


@pytest.mark.parametrize(
    ("error", "status", "document"),
    [
        (NotFound("there is no task x"), 404, {"detail": "there is no task x"}),
        (FailedPrecondition("it has ended"), 400, {"detail": "it has ended"}),
        (InvalidArgument("no"), 400, {"detail": "no"}),
        (Unavailable("away"), 503, {"detail": "away"}),
        (Internal("id 7"), 500, {"success": False, "error": "Internal Server Error", "message": "id 7"}),
    ],
)
async def test_errors_of_the_services(gateway: Gateway, error: Any, status: int, document: Any) -> None:
    gateway.tasks.error = error
    response = await gateway.client.get("/api/training/status/x")
    assert (response.status_code, response.json()) == (status, document)


async def test_routes_that_are_not_there(gateway: Gateway) -> None:
    response = await gateway.client.get("/api/training/nothing")
    assert (response.status_code, response.json()) == (404, {"detail": "Not Found"})
    response = await gateway.client.get("/api/training/start")
    assert (response.status_code, response.json()) == (405, {"detail": "Method Not Allowed"})
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    "headers", [{"authorization": ""}, {"authorization": "Bearer x"}, {"authorization": "Basic eA=="}]
)
@pytest.mark.parametrize("path", ["/api/training/tasks", "/api/llm-finetuning/tasks"])
async def test_a_token_is_needed(gateway: Gateway, path: str, headers: dict[str, str]) -> None:
    response = await gateway.client.get(path, headers=headers)
    assert (response.status_code, list(response.json())) == (401, ["detail"])
    assert response.headers["www-authenticate"] == "Bearer"
    assert not gateway.tasks.requests


async def test_limits_of_a_list_are_checked(gateway: Gateway) -> None:
    for limit in ("0", "x", "1001"):
        response = await gateway.client.get("/api/training/tasks", params={"limit": limit})
        assert (response.status_code, list(details(response.json()))) == (422, ["query.limit"])


async def test_method_is_lora(gateway: Gateway) -> None:
    await start(gateway)
    assert created(gateway).spec.finetune.language_model.method == spec_pb2.METHOD_LORA


async def test_every_route_is_described() -> None:
    """Of both surfaces; each request's ranges and defaults are those of its surface."""
    settings = GatewaySettings(port=0)
    backends = connect(settings)
    served: set[tuple[str, str]] = set()
    spool = Spool(settings)
    for mount in (training_routes(backends, settings, spool), llm_finetuning_routes(backends, settings, spool)):
        assert isinstance(mount, Mount)
        for route in mount.routes:
            assert isinstance(route, Route)
            verbs = set(route.methods or ()) - {"HEAD"}
            served |= {(mount.path + route.path, verb.lower()) for verb in verbs}
    await backends.close()
    document = describe()
    prefixes = ("/api/training", "/api/llm-finetuning")
    described = {
        (path, verb) for path in document["paths"] if path.startswith(prefixes) for verb in document["paths"][path]
    }
    assert described == served
    schemas = document["components"]["schemas"]
    epochs = schemas["TrainingRequest"]["properties"]["epochs"]
    assert (epochs["minimum"], epochs["maximum"], epochs["default"]) == (1, 100, 10)
    assert schemas["QLoRARequest"]["properties"]["lora_r"]["default"] == 64
    assert schemas["LoRARequest"]["properties"]["lora_r"]["maximum"] == 256
    form = document["paths"]["/api/llm-finetuning/qlora"]["post"]["requestBody"]["content"]["multipart/form-data"][
        "schema"
    ]
    assert form["required"] == ["dataset", "base_model"]
    assert form["properties"]["dataset"]["format"] == "binary"
    assert "train_file" not in form["properties"]
    identifiers = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(set(identifiers)) == len(identifiers)
