"""The documented /finetuning/* routes, from the request example to a model that loads.

F2, F3, F5, F6, F14-F20, F24, F33-F36.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import AutoTokenizer

from tests.support.platform import Platform, Workload
from tests.support.waiting import wait_until


class Finetuning:
    """A browser's view of the routes."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def call(self, method: str, route: str, **arguments: Any) -> tuple[int, Any, str]:
        response = self._http.request(method, f"/finetuning/{route}", **arguments)
        assert response.status_code == 200
        envelope = response.json()
        return envelope["code"], envelope["data"], envelope["msg"]

    def data(self, method: str, route: str, **arguments: Any) -> Any:
        code, data, message = self.call(method, route, **arguments)
        assert code == 0, message
        return data

    def wait_for(self, number: int, *statuses: str) -> dict[str, Any]:
        def reached() -> dict[str, Any] | None:
            task: dict[str, Any] = self.data("GET", "getTask", params={"id": number})
            return task if task["status"] in statuses else None

        return wait_until(reached, 120, f"task {number} to be one of {statuses}")


@pytest.fixture
def finetuning(platform: Platform) -> Iterator[Finetuning]:
    headers = {"x-token": platform.token()}
    with httpx.Client(base_url=platform.url, headers=headers, timeout=60, trust_env=False) as http:
        yield Finetuning(http)


def example(workload: Workload, output: Path, **training: Any) -> dict[str, Any]:
    """The documents' request example, with a model and data that are on this machine."""
    return {
        "name": "my_finetuning_task",
        "description": "ChatGLM3 医疗问答微调",
        "baseModel": str(workload.model),
        "datasetPath": str(workload.dataset.parent),
        "outputPath": str(output),
        "trainingArgs": {
            "num_train_epochs": 5,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 4,
            "learning_rate": 2e-4,
            "max_seq_length": 512,
        }
        | training,
        "gpuConfig": {"cuda_visible_devices": "0,1"},
    }


def test_request_example_runs_to_a_model(finetuning: Finetuning, platform: Platform, workload: Workload) -> None:
    output = platform.data_dir / "outputs" / "medical_chatglm3"
    created = finetuning.call("POST", "createTask", json=example(workload, output, logging_steps=2))
    assert created[0] == 0, created[2]
    assert created[2] == "任务创建成功，已在后台开始执行"
    number = created[1]["ID"]
    task = finetuning.wait_for(number, "completed", "failed")
    assert task["status"] == "completed", task["errorMessage"]
    assert task["progress"] == 100
    assert json.loads(task["trainingArgs"])["num_train_epochs"] == 5
    assert json.loads(task["metrics"])["loss"] > 0
    assert task["startedAt"] <= task["finishedAt"]
    assert task["outputPath"] == str(output)
    assert AutoTokenizer.from_pretrained(output).chat_template
    assert list(output.glob("*.safetensors"))
    log = finetuning.data("GET", "getTaskLog", params={"id": number})
    assert "loss" in log
    assert finetuning.data("GET", "getTaskLog", params={"id": number, "lines": 2}).count("\n") == 1
    listed = finetuning.data("GET", "getTaskList", params={"name": "my_finetuning", "status": "completed"})
    assert listed["total"] >= 1
    assert number in [item["ID"] for item in listed["list"]]
    assert finetuning.call("DELETE", "deleteTask", params={"id": number})[2] == "删除成功"
    assert finetuning.call("GET", "getTask", params={"id": number})[0] == 7
    assert list(output.glob("*.safetensors")), "the model is kept when its task is deleted"


def test_a_task_runs_in_the_background_is_watched_stopped_and_deleted(
    finetuning: Finetuning, platform: Platform, workload: Workload
) -> None:
    """F2, F3, F6, F18, F19: createTask answers before the training, and whoever asked may leave."""
    request = example(workload, platform.data_dir / "outputs" / "stopped", num_train_epochs=200, logging_steps=1)
    with httpx.Client(base_url=platform.url, headers={"x-token": platform.token()}, trust_env=False) as leaving:
        number = Finetuning(leaving).data("POST", "createTask", json=request)["ID"]
    task = finetuning.data("GET", "getTask", params={"id": number})
    assert task["status"] in ("pending", "running")
    assert task["progress"] < 100

    def grown(before: tuple[float, int]) -> tuple[float, int] | None:
        """Progress and the lines of the log, once both are more than before."""
        task = finetuning.data("GET", "getTask", params={"id": number})
        lines = finetuning.data("GET", "getTaskLog", params={"id": number}).count("\n")
        assert task["status"] in ("pending", "running"), task["errorMessage"]
        return (task["progress"], lines) if task["progress"] > before[0] and lines > before[1] else None

    first = wait_until(lambda: grown((0, 0)), 60, "the training to begin")
    wait_until(lambda: grown(first), 60, "progress and log to go on")
    code, _, message = finetuning.call("POST", "stopTask", params={"id": number})
    assert (code, message) == (0, "任务已停止")
    finetuning.wait_for(number, "stopped")
    code, _, message = finetuning.call("POST", "stopTask", params={"id": number})
    assert (code, message) == (7, "停止任务失败: 任务未在运行中")
    assert finetuning.call("DELETE", "deleteTask", params={"id": number}) == (0, {}, "删除成功")
    for route in ("getTask", "getTaskLog"):
        assert finetuning.call("GET", route, params={"id": number})[0] == 7, f"{route} of a deleted task"


def test_every_problem_of_a_request_is_named_at_once(finetuning: Finetuning, workload: Workload) -> None:
    """F5, F34: parameters."""
    code, _, message = finetuning.call(
        "POST",
        "createTask",
        json={
            "name": "bad",
            "baseModel": "/etc",
            "datasetPath": str(workload.dataset.parent / "missing.jsonl"),
            "trainingArgs": {"learning_rat": 1, "num_train_epochs": -1, "per_device_train_batch_size": 0},
        },
    )
    assert code == 7
    for word in ("learning_rat", "num_train_epochs", "per_device_train_batch_size"):
        assert word in message


def test_bad_model_and_bad_data_are_named_at_once(finetuning: Finetuning, workload: Workload) -> None:
    """F34: the format of the data, and the model."""
    data = workload.dataset.parent / "bad"
    data.mkdir(exist_ok=True)
    (data / "train.jsonl").write_text('{"instruction": "a", "output": "b"}\n{"question": "a"}\nnot json\n')
    gguf = workload.dataset.parent / "gguf"
    gguf.mkdir(exist_ok=True)
    (gguf / "model.gguf").write_bytes(b"GGUF")
    request = {"name": "bad", "baseModel": str(gguf), "datasetPath": str(data)}
    code, _, message = finetuning.call("POST", "createTask", json=request)
    assert code == 7
    assert "GGUF" in message
    assert "2" in message and "3" in message, "the lines that are wrong"


def test_a_missing_or_bad_token_is_401(platform: Platform) -> None:
    for headers in ({}, {"x-token": "nonsense"}):
        response = httpx.get(f"{platform.url}/finetuning/getTaskList", headers=headers, trust_env=False)
        assert response.status_code == 401
        assert response.json()["code"] == 7


@pytest.mark.parametrize("private", ["objects", "keys/signing.pem", "admin.token", "tunesmith.db"])
def test_the_platforms_own_files_are_nobodys_data(finetuning: Finetuning, platform: Platform, private: str) -> None:
    path = str(platform.data_dir / private)
    code, _, message = finetuning.call("POST", "createTask", json={"name": "x", "baseModel": path, "datasetPath": path})
    assert code == 7
    assert message.count("the platform's own files") == 2
