"""POST /api/training/start: the guide's requests, defaults, ranges and refusals (T7, T8)."""

import re
from typing import Any

import pytest

from gateway.tests.conftest import TASK_ID, Gateway
from gateway.tests.guide_requests import LLM, RESNET, created, details, start
from servicekit.errors import (
    Problem,
    Unimplemented,
)
from tunesmith.task.v1 import spec_pb2


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


async def test_method_is_lora(gateway: Gateway) -> None:
    await start(gateway)
    assert created(gateway).spec.finetune.language_model.method == spec_pb2.METHOD_LORA


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


async def test_problems_of_validation_data_are_about_its_own_field(gateway: Gateway) -> None:
    gateway.tasks.spec_problems = [Problem("spec.finetune.dataset.validation_path", "'/nope' does not exist")]
    status, document = await start(gateway, eval_dataset="/nope")
    assert (status, set(details(document))) == (422, {"body.eval_dataset"})


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
    assert created(gateway).name == "llama-2-7b_ba7816bf", "the time would be another one when it is repeated"
    await gateway.client.post("/api/training/start", json=LLM)
    assert len(created(gateway).request_id) == 32
