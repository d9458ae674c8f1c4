"""The other routes of the fine-tuning tasks document (F7, F15-F20): fields, filters, messages, tokens."""

import json
from datetime import timedelta
from typing import Any

import httpx
import pytest

from tunesmith.task.v1 import spec_pb2, task_pb2


async def test_f7_fields_of_a_task(gateway: Any) -> None:
    gateway.tasks.add()
    answer = await gateway.finetuning("GET", "getTask", params={"id": 7})
    assert answer == (
        0,
        {
            "ID": 7,
            "CreatedAt": "2026-01-02T03:04:05.678Z",
            "UpdatedAt": "2026-01-02T03:05:06Z",
            "name": "one",
            "description": None,
            "userID": None,
            "status": "running",
            "progress": 0.0,
            "baseModel": "THUDM/chatglm3-6b",
            "datasetPath": "/data/medicalqa",
            "outputPath": None,
            "trainingArgs": None,
            "gpuConfig": None,
            "command": "tunesmith train --name one --base-model THUDM/chatglm3-6b --dataset /data/medicalqa",
            "logPath": f"tasks/{gateway.tasks.requests[-1].task_id or next(iter(gateway.tasks.tasks))}/log.txt",
            "errorMessage": None,
            "startedAt": None,
            "finishedAt": None,
            "pid": None,
            "metrics": None,
        },
        "成功",
    )


async def test_f7_fields_that_are_set(gateway: Any) -> None:
    task = gateway.tasks.add(
        description="d", owner_number=3, pid=99, output_dir="/o", metrics={"loss": 1.5, "accuracy": float("nan")}
    )
    task.start_time.FromSeconds(1_700_000_000)
    task.end_time.FromSeconds(1_700_000_100)
    task.progress.percent = 41.5
    task.error.message, task.error.problems[:] = "out of memory", ["lower the batch size"]
    _, document, _ = await gateway.finetuning("GET", "getTask", params={"id": 7})
    assert document["description"] == "d"
    assert document["userID"] == 3
    assert document["pid"] == 99
    assert document["outputPath"] == "/o"
    assert document["progress"] == 41.5
    assert (document["startedAt"], document["finishedAt"]) == (1_700_000_000, 1_700_000_100)
    assert document["errorMessage"] == "out of memory\nlower the batch size"
    assert json.loads(document["metrics"]) == {"loss": 1.5, "accuracy": "NaN"}
    task.error.message = "lower the batch size; raise the rank"
    task.error.problems.append("raise the rank")
    _, document, _ = await gateway.finetuning("GET", "getTask", params={"id": 7})
    assert document["errorMessage"] == task.error.message, "nothing is told twice"


@pytest.mark.parametrize("data", ["/data/medicalqa", "a" * 26, "s3://bucket/key", "hf://tatsu-lab/alpaca"])
async def test_data_is_shown_as_it_was_named(gateway: Any, data: str) -> None:
    """F7, F11: wherever it lies; the command names it too."""
    body = {"name": "n", "baseModel": "m", "datasetPath": data}
    assert (await gateway.finetuning("POST", "createTask", json=body))[0] == 0
    _, document, _ = await gateway.finetuning("GET", "getTask", params={"id": 7})
    assert document["datasetPath"] == data
    assert f"--dataset {data}" in document["command"]


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("PENDING", "pending"),
        ("RUNNING", "running"),
        ("STOPPING", "running"),
        ("STOPPED", "stopped"),
        ("COMPLETED", "completed"),
        ("FAILED", "failed"),
    ],
)
async def test_f15_states(gateway: Any, state: str, status: str) -> None:
    gateway.tasks.add().state = task_pb2.State.Value(f"STATE_{state}")
    _, document, _ = await gateway.finetuning("GET", "getTask", params={"id": 7})
    assert document["status"] == status
    assert (document["progress"] == 100) == (status == "completed")


async def test_the_command_of_a_task(gateway: Any) -> None:
    task = gateway.tasks.add()
    spec = task.spec.finetune
    spec.training.learning_rate, spec.training.warmup_steps, spec.training.seed = 1e-4, 100, 42
    spec.language_model.method = spec_pb2.METHOD_LORA
    spec.language_model.lora.target_modules.extend(["q", "v"])
    spec.devices.cuda_visible_devices = "0,1"
    for name in ("warmup_steps", "seed"):
        task.parameter_sources[f"finetune.training.{name}"] = task_pb2.PARAMETER_SOURCE_DEFAULT
    _, document, _ = await gateway.finetuning("GET", "getTask", params={"id": 7})
    words = "--method lora --set cuda_visible_devices=0,1 --set learning_rate=0.0001 --set warmup_steps=100"
    assert document["command"].endswith(f"{words} --set lora_target_modules=q,v"), "seed is the platform's default"


async def test_f18_f19_stop(gateway: Any) -> None:
    task = gateway.tasks.add()
    assert await gateway.finetuning("POST", "stopTask", params={"id": 7}) == (0, {}, "任务已停止")
    task.state = task_pb2.STATE_STOPPED
    assert await gateway.finetuning("POST", "stopTask", params={"id": 7}) == (7, {}, "停止任务失败: 任务未在运行中")


async def test_f20_delete_stops_first(gateway: Any) -> None:
    gateway.tasks.add()
    assert await gateway.finetuning("DELETE", "deleteTask", params={"id": 7}) == (0, {}, "删除成功")
    assert gateway.tasks.requests[-1].force
    assert await gateway.finetuning("DELETE", "deleteTask", params={"id": 7}) == (7, {}, "删除任务失败: 任务不存在")


async def test_f17_log(gateway: Any) -> None:
    gateway.tasks.add()
    gateway.tasks.log = ["一", "two", "three", "four"]
    assert await gateway.finetuning("GET", "getTaskLog", params={"id": 7}) == (0, "一\ntwo\nthree\nfour", "获取成功")
    assert (await gateway.finetuning("GET", "getTaskLog", params={"id": 7, "lines": 2}))[1] == "three\nfour"
    assert (await gateway.finetuning("GET", "getTaskLog", params={"id": 7, "offset": 3}))[1] == "four"
    assert (await gateway.finetuning("GET", "getTaskLog", params={"id": 7, "lines": "x", "offset": -1}))[0] == 7


async def test_f15_list(gateway: Any) -> None:
    gateway.tasks.add()
    code, data, message = await gateway.finetuning("GET", "getTaskList")
    assert (code, message) == (0, "获取成功")
    assert {name: data[name] for name in ("total", "page", "pageSize")} == {"total": 1, "page": 1, "pageSize": 10}
    assert data["list"][0]["ID"] == 7
    request = gateway.tasks.requests[-1]
    assert (request.page_size, request.offset, request.with_total) == (10, 0, True)
    assert list(request.kinds) == [task_pb2.KIND_FINETUNE]
    assert not request.ascending, "newest first"


async def test_list_filters_pages_and_order(gateway: Any) -> None:
    query = {
        "page": 3,
        "pageSize": 500,
        "keyword": "医疗",
        "name": "a",
        "baseModel": "glm",
        "status": "running",
        "orderKey": "name",
        "desc": "false",
    }
    _, data, _ = await gateway.finetuning("GET", "getTaskList", params=query)
    assert (data["page"], data["pageSize"]) == (3, 100)
    request = gateway.tasks.requests[-1]
    assert (request.page_size, request.offset) == (100, 200)
    assert (request.keyword, request.name_contains, request.base_model_contains) == ("医疗", "a", "glm")
    assert list(request.states) == [task_pb2.STATE_RUNNING, task_pb2.STATE_STOPPING]
    assert request.order_by == 3
    assert request.ascending
    await gateway.finetuning("GET", "getTaskList", params={"orderKey": "created_at", "desc": "true"})
    assert not gateway.tasks.requests[-1].ascending


async def test_list_problems(gateway: Any) -> None:
    query = {"page": "one", "pageSize": -1, "status": "cancelled", "orderKey": "owner", "desc": "maybe"}
    code, _, message = await gateway.finetuning("GET", "getTaskList", params=query)
    assert code == 7
    assert all(f"{name}: " in message for name in query)


@pytest.mark.parametrize("route", ["getTask", "getTaskLog"])
async def test_ids(gateway: Any, route: str) -> None:
    action = {"getTask": "获取任务", "getTaskLog": "获取任务日志"}[route]
    assert await gateway.finetuning("GET", route) == (7, {}, f"{action}失败: id: 必填")
    for bad in ("0", "-1", "x", "1.5", "9" * 30):
        code, _, message = await gateway.finetuning("GET", route, params={"id": bad})
        assert (code, message.startswith(f"{action}失败: id: 应为正整数")) == (7, True)
    assert await gateway.finetuning("GET", route, params={"id": 5}) == (7, {}, f"{action}失败: 任务不存在")


async def test_other_kinds_of_work_are_not_tasks_here(gateway: Any) -> None:
    gateway.tasks.add().spec.export.source_task_id = "t"
    assert (await gateway.finetuning("GET", "getTask", params={"id": 7}))[2] == "获取任务失败: 任务不存在"


async def test_tokens(gateway: Any) -> None:
    gateway.tasks.add()
    expired = gateway.token(lifetime=timedelta(seconds=-1))
    bad: list[tuple[dict[str, str], str]] = [
        ({}, "未登录或非法访问"),
        ({"x-token": "nonsense"}, "令牌无效，请重新登录"),
        ({"x-token": expired}, "授权已过期，请重新登录"),
        ({"authorization": f"Bearer {expired}"}, "授权已过期，请重新登录"),
    ]
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False) as client:
        for headers, message in bad:
            for response in (
                await client.get("/finetuning/getTask", params={"id": 7}, headers=headers),
                await client.post("/api/finetuning/createTask", content=b"{", headers=headers),
            ):
                assert response.status_code == 401
                assert response.json() == {"code": 7, "data": {}, "msg": message}
        for headers in ({"x-token": gateway.token()}, {"authorization": f"Bearer {gateway.token()}"}):
            response = await client.get("/finetuning/getTask", params={"id": 7}, headers=headers)
            assert response.json()["code"] == 0
            assert gateway.tasks.metadata["authorization"].startswith("Bearer ey")


async def test_unknown_routes_have_the_envelope_too(gateway: Any) -> None:
    response = await gateway.client.get("/finetuning/nothing")
    assert (response.status_code, response.json()["code"]) == (404, 7)
    response = await gateway.client.get("/api/finetuning/createTask")
    assert (response.status_code, response.json()["code"]) == (405, 7)
