"""/api/training: status, lists, stopping, checkpoints, models (T13, T15)."""

from typing import Any

import pytest

from gateway.tests.conftest import TASK_ID, Gateway
from gateway.tests.guide_requests import details
from tunesmith.task.v1 import task_pb2

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
    assert (response.status_code, response.json()) == (400, {"detail": "the task is not running: it is cancelled"})


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
    upper = await gateway.client.get("/api/training/models", params={"model_type": "LLM"})
    assert upper.json() == response.json()
    assert (await gateway.client.get("/api/training/models")).json()[0]["description"] == "any"
    response = await gateway.client.get("/api/training/models", params={"model_type": "speech"})
    assert (response.status_code, list(details(response.json()))) == (422, ["query.model_type"])


async def test_limits_of_a_list_are_checked(gateway: Gateway) -> None:
    for limit in ("0", "x", "1001"):
        response = await gateway.client.get("/api/training/tasks", params={"limit": limit})
        assert (response.status_code, list(details(response.json()))) == (422, ["query.limit"])
