"""/api/training: datasets, and forms that start a training on pictures."""

from gateway.tests.conftest import TASK_ID, Gateway
from gateway.tests.guide_requests import created, details
from servicekit.errors import (
    Unimplemented,
)


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
