"""Requests of the training guide, for tests of its routes."""

from typing import Any

from gateway.tests.conftest import Gateway
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
