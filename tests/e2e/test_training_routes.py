"""The training guide's routes, from an upload to an adapter, progress over a WebSocket.

T7, T8, T13-T16, T18, T22, T31.
"""

import io
import json
import zipfile
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from tests.support.platform import Platform, Workload
from tests.support.waiting import wait_until

LINES = [{"instruction": f"Translate to French: {number}", "response": f"Numéro {number}"} for number in range(24)]


@pytest.fixture
def http(platform: Platform) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {platform.token()}"}
    with httpx.Client(base_url=platform.url, headers=headers, timeout=60, trust_env=False) as client:
        yield client


def content() -> bytes:
    return "".join(json.dumps(line) + "\n" for line in LINES).encode()


def messages_until_end(platform: Platform, path: str, task_id: str) -> list[dict[str, Any]]:
    """What a WebSocket says of a task until it is completed."""
    url = f"{platform.url.replace('http', 'ws')}{path}"
    headers = {"authorization": f"Bearer {platform.token()}"}
    found: list[dict[str, Any]] = []
    with connect(url, additional_headers=headers, proxy=None) as socket:
        while not found or found[-1]["data"]["status"] in ("pending", "running"):
            message = json.loads(socket.recv(timeout=60))
            if message.get("task_id") == task_id:
                found.append(message)
    return found


def started(http: httpx.Client, workload: Workload) -> str:
    """The task that trains an adapter on an upload."""
    uploaded = http.post("/api/llm-finetuning/data/upload", files={"file": ("train.jsonl", content())})
    assert uploaded.status_code == 200, uploaded.text
    assert uploaded.json()["samples"] == len(LINES)
    request = {
        "base_model": str(workload.model),
        "dataset_path": uploaded.json()["path"],
        "lora_r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "batch_size": 4,
        "gradient_accumulation_steps": 1,
        "learning_rate": 2e-4,
        "epochs": 2,
        "save_steps": 4,
        "logging_steps": 1,
    }
    response = http.post("/api/llm-finetuning/lora/start", json=request)
    assert response.status_code == 200, response.text
    return str(response.json()["task_id"])


def test_upload_train_watch_and_look_at_the_adapter(http: httpx.Client, platform: Platform, workload: Workload) -> None:
    task_id = started(http, workload)
    messages = messages_until_end(platform, "/ws/training", task_id)
    assert messages[-1]["data"]["status"] == "completed", messages[-1]
    steps = [message["step"] for message in messages if message["type"] == "progress"]
    assert steps == sorted(steps)
    assert {message["type"] for message in messages} == {"status", "progress"}
    assert [message["loss"] for message in messages if message["loss"]]
    status = http.get(f"/api/llm-finetuning/status/{task_id}").json()
    assert (status["status"], status["progress"], status["total_epochs"]) == ("completed", 100, 2)
    assert (status["current_step"], status["total_steps"]) == (12, 12)
    assert status["loss"] > 0
    assert status["started_at"] < status["completed_at"]
    checkpoints = http.get(f"/api/training/checkpoints/{task_id}").json()["checkpoints"]
    assert [checkpoint["step"] for checkpoint in checkpoints] == [4, 8, 12]
    assert task_id in [task["task_id"] for task in http.get("/api/training/history").json()]
    assert task_id not in [task["task_id"] for task in http.get("/api/training/tasks").json()]
    adapters = http.get("/api/llm-finetuning/adapters").json()["adapters"]
    (adapter,) = [adapter for adapter in adapters if adapter["task_id"] == task_id]
    assert (adapter["config"]["r"], adapter["config"]["target_modules"]) == (8, ["q_proj", "v_proj"])
    last = messages_until_end(platform, f"/ws/training/{task_id}", task_id)
    assert [message["data"]["status"] for message in last] == ["completed"]
    export = http.get(f"/api/llm-finetuning/export/{task_id}")
    assert export.headers["content-disposition"] == f'attachment; filename="lora_adapter_{task_id}.zip"', export.text
    with zipfile.ZipFile(io.BytesIO(export.content)) as archive:
        assert archive.testzip() is None
        assert {"adapter_config.json", "adapter_model.safetensors"} <= set(archive.namelist())


def test_a_form_starts_a_training_that_can_be_stopped(http: httpx.Client, workload: Workload) -> None:
    fields = {"base_model": str(workload.model), "epochs": "50", "batch_size": "1", "gradient_accumulation_steps": "1"}
    answer = http.post("/api/llm-finetuning/lora", data=fields, files={"dataset": ("train.jsonl", content())})
    assert answer.status_code == 200, answer.text
    task_id = answer.json()["task_id"]
    assert answer.json()["success"]

    def status() -> str:
        return str(http.get(f"/api/training/status/{task_id}").json()["status"])

    wait_until(lambda: status() == "running", 60, "the training to run")
    assert http.post(f"/api/training/stop/{task_id}").json()["status"] in ("running", "cancelled")
    wait_until(lambda: status() == "cancelled", 60, "the training to be cancelled")
    assert http.post(f"/api/training/stop/{task_id}").status_code == 400


def test_the_guides_image_example_is_refused_as_not_there_yet(http: httpx.Client) -> None:
    request = {
        "model_type": "image_classifier",
        "base_model": "resnet50",
        "dataset_path": "/datasets/my_images",
        "epochs": 15,
        "batch_size": 16,
        "learning_rate": 0.0001,
    }
    answer = http.post("/api/training/start", json=request)
    assert (answer.status_code, list(answer.json())) == (501, ["detail"])
    answer = http.post("/api/training/start", json={**request, "epochs": 0})
    assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["body", "epochs"])


def test_every_problem_of_a_training_is_named_at_once(http: httpx.Client, workload: Workload) -> None:
    request = {
        "model_type": "llm",
        "base_model": "no/such-model",
        "dataset_path": str(workload.dataset.parent / "missing.jsonl"),
        "batch_size": 0,
    }
    answer = http.post("/api/training/start", json=request)
    assert answer.status_code == 422
    assert {item["loc"][1] for item in answer.json()["detail"]} == {"base_model", "dataset_path", "batch_size"}


def test_datasets_are_uploaded_and_deleted(http: httpx.Client) -> None:
    for route, arguments in (
        ("/api/training/datasets/upload", {"files": {"file": ("a.jsonl", content())}, "data": {"name": "guide"}}),
        ("/v1/datasets?name=guide&file_name=a.jsonl", {"content": content()}),
    ):
        answer = http.post(route, **arguments)  # type: ignore[arg-type]
        assert answer.status_code == 200, answer.text
    found = [dataset for dataset in http.get("/api/training/datasets").json() if dataset["name"] == "guide"]
    assert [dataset["version"] for dataset in found] == [1], "the same content is the same version"
    assert http.delete(f"/api/training/datasets/{found[0]['id']}").status_code == 200
    assert http.delete(f"/api/training/datasets/{found[0]['id']}").status_code == 404


def test_every_other_route_answers(http: httpx.Client, workload: Workload) -> None:
    """QLoRA with the guide's settings (T22), the lists, the model asked and merged (T32), and what comes later."""
    data = http.post("/api/llm-finetuning/data/upload", files={"file": ("train.jsonl", content())}).json()["path"]
    quantized = {"use_4bit": True, "bnb_4bit_quant_type": "nf4", "use_nested_quant": False}
    body = {"base_model": str(workload.model), "dataset_path": data, "epochs": 1, **quantized}
    started = http.post("/api/llm-finetuning/qlora/start", json=body)
    assert started.status_code == 200, started.text
    task_id = started.json()["task_id"]
    wait_until(
        lambda: http.get(f"/api/llm-finetuning/status/{task_id}").json()["status"] in ("completed", "failed"),
        90,
        "the training to end",
    )
    assert http.get(f"/api/training/status/{task_id}").json()["error"] is None
    models = http.get("/api/llm-finetuning/models").json()
    assert {"llama-2-7b", "llama-2-13b", "mistral-7b", "phi-2", "qwen-7b"} <= {model["id"] for model in models}
    assert all(set(model) == {"id", "name", "parameters", "description"} for model in models)
    assert http.get("/api/training/models", params={"model_type": "llm"}).status_code == 200
    images = {"dataset": ("images.zip", b"PK\x05\x06" + b"\0" * 18)}
    for route in ("image-classifier", "object-detection"):
        answer = http.post(f"/api/training/{route}", files=images, data={"base_model": "resnet50"})
        assert answer.status_code == 501, answer.text
    model = http.get(f"/api/training/download/{task_id}")
    assert model.headers["content-disposition"] == f'attachment; filename="model_{task_id}.zip"', model.text
    answer = http.post("/api/llm-finetuning/test", json={"task_id": task_id, "prompt": "hi", "max_tokens": 4})
    assert (answer.status_code, list(answer.json())) == (200, ["response"])
    merged = workload.model.parent / "merged"
    merge = {"task_id": task_id, "output_path": str(merged)}
    answer = http.post("/api/llm-finetuning/merge", json=merge, timeout=120)
    assert (answer.status_code, answer.json()) == (200, {"success": True, "path": str(merged)})
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in merged.iterdir()}
    assert http.get("/api/training/status/unknown").status_code == 404
    assert http.get("/api/training/tasks", headers={"authorization": "Bearer x"}).status_code == 401
