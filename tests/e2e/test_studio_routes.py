"""What the studio's document needs of /v1, on a whole platform.

M2, M6, M7, M12-M14, M18-M24, M27-M37 as far as the API carries them.
"""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.platform import Platform, Workload
from tests.support.waiting import wait_until
from tunesmith.client import Client, ended, finetune_request


@pytest.fixture
def http(platform: Platform) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {platform.token()}"}
    with httpx.Client(base_url=f"{platform.url}/v1", headers=headers, timeout=60, trust_env=False) as client:
        yield client


def get(http: httpx.Client, path: str, **query: Any) -> Any:
    answer = http.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def post(http: httpx.Client, path: str, body: Any = None) -> Any:
    answer = http.post(path, json=body or {})
    assert answer.status_code == 200, answer.text
    return answer.json()


def spec(workload: Workload, **training: Any) -> dict[str, Any]:
    return {
        "base_model": str(workload.model),
        "dataset": {"path": str(workload.dataset)},
        "training": {"max_steps": 6, "save_steps": 3, "logging_steps": 1, **training},
        "language_model": {"method": "lora", "max_seq_length": 128},
    }


def test_the_form_is_drawn_from_the_parameters(http: httpx.Client) -> None:
    """M25-M34, M37: names, defaults, ranges and folds; pretraining hides LoRA."""
    found = {row["name"]: row for row in get(http, "/parameters", surface="studio", objective="sft")["parameters"]}
    rate = found["learning_rate"]
    assert (rate["default_value"], rate["minimum"], rate["maximum"]) == (2e-4, 1e-6, 0.1)
    assert (found["train_file"]["label_zh"], found["train_file"]["required"]) == ("训练数据文件路径", True)
    assert found["lora_target_modules"]["default_value"] == ["q_proj", "v_proj"]
    assert (found["fp16"]["default_value"], found["bf16"]["default_value"]) == (True, False)
    assert {row["fold"] for row in found.values()} <= {"", "optional", "advanced", "optimization", "save", "eval"}
    hidden = {row["name"] for row in get(http, "/parameters", surface="studio", objective="pretrain")["parameters"]}
    assert "lora_r" in found
    assert "lora_r" not in hidden


def test_what_is_known_before_the_start(http: httpx.Client, workload: Workload) -> None:
    """M2, M20, M21, M23, M24: environment, quota, and an estimate of the checkpoints."""
    environment = get(http, "/environment")
    assert environment["ready"], environment["checks"]
    quota = get(http, "/quota")["quota"]
    assert (quota["monthly_allowance"], quota["remaining"]) == (-1, -1)
    estimate = post(http, "/estimates", {"spec": spec(workload, max_steps=1000, save_steps=100)})
    assert (estimate["total_steps"], estimate["checkpoints"]) == (1000, 10)
    assert estimate["memory_bytes"] > 0
    assert (estimate["quota"]["user"], estimate["quota"]["remaining"]) == (quota["user"], -1)
    report = post(http, "/datasets:report", {"dataset": {"path": str(workload.dataset)}})
    assert report["valid"], report


def test_a_template_fills_a_task_that_keeps_its_own_copy(http: httpx.Client, workload: Workload) -> None:
    """M35, M36."""
    templates = get(http, "/templates")["templates"]
    assert {template["type"] for template in templates if template["builtin"]} >= {"sft", "pretrain"}
    parameters = {"training": {"learning_rate": 0.003, "max_steps": 2}, "language_model": {"method": "lora"}}
    template = post(http, "/templates", {"name": "quick", "type": "sft", "spec": parameters})["template"]
    source = {"base_model": str(workload.model), "dataset": {"path": str(workload.dataset)}, "language_model": {}}
    body = {"name": "from a template", "spec": {"finetune": source}, "template_id": template["id"]}
    task = post(http, "/tasks", body)["task"]
    parameters["training"]["learning_rate"] = 0.001
    again = post(http, "/templates", {"name": "quick", "type": "sft", "spec": parameters})["template"]
    assert (again["version"], again["id"]) == (2, template["id"])
    kept = get(http, f"/tasks/{task['id']}")["task"]
    assert kept["spec"]["finetune"]["training"]["learning_rate"] == 0.003
    assert kept["parameter_sources"]["finetune.training.learning_rate"] == "PARAMETER_SOURCE_TEMPLATE"
    assert http.delete(f"/templates/{template['id']}").status_code == 200


def events(http: httpx.Client, path: str) -> Iterator[dict[str, Any]]:
    """What a stream of server-sent events says, until it is left."""
    with http.stream("GET", path, headers={"accept": "application/x-ndjson"}) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            yield json.loads(line)["event"]


def test_a_run_is_watched_and_stays_in_the_history(http: httpx.Client, workload: Workload) -> None:
    """M6, M12-M14, M18, M19: live figures of all tasks, then curves, log and checkpoints of the finished one."""
    stream = events(http, "/tasks:watch")
    task = post(http, "/tasks", {"name": "watched", "spec": {"finetune": spec(workload)}})["task"]
    seen: list[dict[str, Any]] = []
    for event in stream:
        if event["task_id"] == task["id"]:
            seen.append(event)
            if event["type"] in ("task.completed", "task.failed", "task.stopped"):
                break
    stream.close()  # type: ignore[attr-defined]
    assert seen[-1]["type"] == "task.completed", seen[-1]
    assert {"task.started", "task.progressed", "metrics.logged", "checkpoint.saved"} <= {item["type"] for item in seen}
    series = {item["name"]: item for item in get(http, f"/tasks/{task['id']}/metrics")["series"]}
    assert {"loss", "learning_rate", "grad_norm", "perplexity"} <= set(series)
    assert series["loss"]["steps"] == [1, 2, 3, 4, 5, 6]
    assert [item["step"] for item in get(http, f"/tasks/{task['id']}/checkpoints")["checkpoints"]] == [3, 6]
    assert get(http, f"/tasks/{task['id']}/log")["total_lines"] > 0
    listed = get(http, "/tasks", states="completed", name_contains="watched")["tasks"]
    assert task["id"] in [item["id"] for item in listed]


def test_stop_and_resume_are_runs_of_one_task(http: httpx.Client, workload: Workload) -> None:
    """M7, M18, M19; a running task is not deleted."""
    body = {"name": "long", "spec": {"finetune": spec(workload, max_steps=4000, save_steps=5)}}
    task_id = post(http, "/tasks", body)["task"]["id"]

    def state() -> str:
        return str(get(http, f"/tasks/{task_id}")["task"]["state"])

    wait_until(lambda: get(http, f"/tasks/{task_id}/checkpoints")["checkpoints"], 60, "a checkpoint")
    assert http.delete(f"/tasks/{task_id}").status_code == 400
    assert post(http, f"/tasks/{task_id}:stop")["task"]["state"] == "STATE_STOPPING"
    wait_until(lambda: state() == "STATE_STOPPED", 60, "the task to be stopped")
    resumed = post(http, f"/tasks/{task_id}:resume")["task"]
    assert (resumed["id"], resumed["run"], resumed["state"]) == (task_id, 2, "STATE_PENDING")
    wait_until(lambda: state() == "STATE_RUNNING", 60, "the second run")
    post(http, f"/tasks/{task_id}:stop", {"discard": True})
    wait_until(lambda: state() == "STATE_STOPPED", 60, "the task to be stopped again")
    assert http.delete(f"/tasks/{task_id}").status_code == 200
    assert http.get(f"/tasks/{task_id}").status_code == 404


def test_the_sdk_uploads_and_watches_all_tasks(client: Client, workload: Workload) -> None:
    seen: list[tuple[int, int]] = []
    dataset = client.datasets.upload(
        workload.dataset, name="sdk", progress=lambda done, size: seen.append((done, size))
    )
    assert (dataset.samples, seen[-1]) == (96, (dataset.size, dataset.size))
    stream = client.tasks.watch_all()
    task = client.tasks.create(finetune_request("sdk", str(workload.model), dataset.id, {"max_steps": 2}))
    types = []
    for response in stream:
        if response.event.task_id == task.id:
            types.append(response.event.type)
            if ended(response.event):
                break
    stream.close()
    assert types[-1] == "task.completed"
    cursor = response.cursor
    second = client.tasks.create(finetune_request("sdk", str(workload.model), dataset.id, {"max_steps": 2}))
    again = client.tasks.watch_all(cursor=cursor)
    events = (item.event for item in again if item.event.task_id == second.id)
    assert next(events).type == "task.created"
    again.close()
    client.tasks.wait(second.id)
