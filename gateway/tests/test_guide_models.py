"""What the guide's routes do with finished models: ZIPs, merging, a first answer (T31, T32)."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.tests.conftest import EXPORT_ID, TASK_ID, Gateway
from servicekit.errors import FailedPrecondition, InvalidArgument, Problem, Unavailable
from tests.support.waiting import eventually
from tunesmith.eval.v1.eval_service_pb2 import GenerateRequest
from tunesmith.export.v1.export_service_pb2 import DownloadModelRequest
from tunesmith.task.v1 import spec_pb2, task_pb2, task_service_pb2

COMPLETED, FAILED, RUNNING = task_pb2.STATE_COMPLETED, task_pb2.STATE_FAILED, task_pb2.STATE_RUNNING
MERGE = {"task_id": TASK_ID, "output_path": "/models/merged"}
TEST = {"task_id": TASK_ID, "prompt": "hello there"}
ROUTES = [
    ("POST", "/api/llm-finetuning/merge", MERGE),
    ("POST", "/api/llm-finetuning/test", TEST),
    ("GET", f"/api/llm-finetuning/export/{TASK_ID}", None),
    ("GET", f"/api/training/download/{TASK_ID}", None),
]


def finished(gateway: Gateway, **fields: Any) -> task_pb2.Task:
    task = gateway.tasks.add(state=COMPLETED, output_dir="/outputs/one", **fields)
    task.spec.finetune.language_model.method = spec_pb2.METHOD_LORA
    return task


async def post(gateway: Gateway, route: str, body: dict[str, Any]) -> tuple[int, Any]:
    response = await gateway.client.post(f"/api/llm-finetuning/{route}", json=body)
    return response.status_code, response.json()


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
async def test_only_completed_tasks_have_a_model(gateway: Gateway, method: str, path: str, body: Any) -> None:
    response = await gateway.client.request(method, path, json=body)
    assert (response.status_code, list(response.json())) == (404, ["detail"])
    task = gateway.tasks.add()
    task.spec.finetune.language_model.SetInParent()
    response = await gateway.client.request(method, path, json=body)
    assert (response.status_code, "wait until it is completed" in response.json()["detail"]) == (400, True)
    assert (gateway.exports.requests, gateway.evaluations.requests) == ([], [])
    if body:
        response = await gateway.client.request(method, path, json={"task_id": 5, "max_tokens": 0})
        assert response.status_code == 422
        assert {detail["loc"][-1] for detail in response.json()["detail"]} >= {"task_id"}


@pytest.mark.parametrize(
    ("path", "name", "adapter_only"),
    [
        (f"/api/llm-finetuning/export/{TASK_ID}", f"lora_adapter_{TASK_ID}.zip", True),
        (f"/api/training/download/{TASK_ID}", f"model_{TASK_ID}.zip", False),
    ],
)
async def test_a_model_as_a_zip(gateway: Gateway, path: str, name: str, adapter_only: bool) -> None:
    finished(gateway)
    gateway.exports.zipped = b"PK" * 5000
    response = await gateway.client.get(path)
    assert (response.status_code, response.content) == (200, b"PK" * 5000)
    assert response.headers["content-type"] == "application/zip"
    assert response.headers["content-disposition"] == f'attachment; filename="{name}"'
    request = gateway.exports.requests[-1]
    assert request == DownloadModelRequest(task_id=TASK_ID, adapter_only=adapter_only)
    gateway.exports.error = FailedPrecondition("the task trained all weights")
    response = await gateway.client.get(path)
    assert (response.status_code, response.json()) == (400, {"detail": "the task trained all weights"})


async def test_a_zip_that_breaks_off_is_not_taken_for_whole(gateway: Gateway) -> None:
    finished(gateway)
    gateway.exports.zipped, gateway.exports.breaks_after = b"PK" * 5000, 2
    with pytest.raises(httpx.RemoteProtocolError):
        await gateway.client.get(f"/api/training/download/{TASK_ID}")


async def end_of_export(gateway: Gateway, **fields: Any) -> None:
    """Lets the export that a request has made end."""
    task = await eventually(lambda: gateway.tasks.tasks.get(EXPORT_ID))
    task.MergeFrom(task_pb2.Task(**fields))
    message = task_service_pb2.WatchTaskResponse(cursor="1")
    message.event.task.CopyFrom(task)
    gateway.tasks.events.put_nowait(message)
    gateway.tasks.events.put_nowait(None)


async def test_a_merge_is_answered_when_the_model_is_there(gateway: Gateway) -> None:
    finished(gateway, name="mine")
    answer, _ = await asyncio.gather(
        post(gateway, "merge", MERGE), end_of_export(gateway, state=COMPLETED, output_dir="/models/merged")
    )
    assert answer == (200, {"success": True, "path": "/models/merged"})
    task = gateway.tasks.tasks[EXPORT_ID]
    spec = spec_pb2.ExportSpec(
        source_task_id=TASK_ID, format=spec_pb2.EXPORT_FORMAT_MERGED, output_dir="/models/merged"
    )
    assert (task.spec.export, task.name) == (spec, "merge_mine")


async def test_a_merge_that_fails_says_why(gateway: Gateway) -> None:
    finished(gateway)
    text = "2 GB are needed, 1 GB is free"
    error = task_pb2.TaskError(reason="DISK_FULL", message=text, problems=[text])
    answer, _ = await asyncio.gather(post(gateway, "merge", MERGE), end_of_export(gateway, state=FAILED, error=error))
    assert answer == (500, {"success": False, "error": "DISK_FULL", "message": error.message})


async def test_a_merge_outlives_a_restart_of_the_task_service(gateway: Gateway) -> None:
    finished(gateway)
    gateway.tasks.events.put_nowait(Unavailable("restarting"))
    answer, _ = await asyncio.gather(
        post(gateway, "merge", MERGE), end_of_export(gateway, state=COMPLETED, output_dir="/models/merged")
    )
    assert answer[0] == 200


async def test_a_merge_that_takes_too_long_is_named(start_gateway: Any, tmp_path: Path) -> None:
    async with start_gateway(tmp_path, wait_seconds=0.2) as gateway:
        finished(gateway)
        status, document = await post(gateway, "merge", MERGE)
        assert (status, document["success"], document["task_id"]) == (202, False, EXPORT_ID)
        assert EXPORT_ID in document["detail"]


async def test_problems_of_a_merge_have_the_guides_names(gateway: Gateway) -> None:
    finished(gateway)
    gateway.tasks.spec_problems = [
        Problem("spec.export.output_dir", "is not below an allowed root"),
        Problem("spec.export.source_task_id", "its base model has changed"),
    ]
    status, document = await post(gateway, "merge", MERGE)
    assert (status, [detail["loc"] for detail in document["detail"]]) == (
        422,
        [["body", "output_path"], ["body", "task_id"]],
    )


async def test_there_must_be_an_adapter_to_merge(gateway: Gateway) -> None:
    task = finished(gateway)
    task.spec.finetune.language_model.method = spec_pb2.METHOD_FULL
    status, document = await post(gateway, "merge", MERGE)
    assert (status, "/outputs/one" in document["detail"]) == (400, True)


async def test_a_model_answers(gateway: Gateway) -> None:
    finished(gateway)
    assert await post(gateway, "test", TEST | {"max_tokens": 20}) == (200, {"response": "hellothere"})
    request = gateway.evaluations.requests[-1]
    assert isinstance(request, GenerateRequest)
    assert (request.task_id, request.max_tokens) == (TASK_ID, 20)
    assert [(message.role, message.content) for message in request.messages] == [("user", "hello there")]
    await post(gateway, "test", TEST)
    assert not gateway.evaluations.requests[-1].HasField("max_tokens")
    gateway.evaluations.error = InvalidArgument("it is a classifier")
    assert await post(gateway, "test", TEST) == (400, {"detail": "it is a classifier"})


async def test_a_prompt_that_is_too_long_is_named_by_the_guides_field(gateway: Gateway) -> None:
    finished(gateway)
    text = "the conversation has 9 tokens and the model reads at most 8"
    gateway.evaluations.error = InvalidArgument(f"messages: {text}", reason="CONVERSATION_TOO_LONG")
    detail = {"loc": ["body", "prompt"], "msg": text, "type": "value_error"}
    assert await post(gateway, "test", TEST) == (422, {"detail": [detail]})


async def test_an_answer_that_takes_too_long(start_gateway: Any, tmp_path: Path) -> None:
    async with start_gateway(tmp_path, wait_seconds=0.2) as gateway:
        finished(gateway)
        gateway.evaluations.hold = True
        status, document = await post(gateway, "test", TEST)
        assert (status, list(document)) == (504, ["detail"])
        await asyncio.wait_for(gateway.evaluations.cancelled.wait(), 5)


async def test_leaving_stops_the_answer(gateway: Gateway) -> None:
    finished(gateway)
    gateway.evaluations.hold = True
    asking = asyncio.ensure_future(post(gateway, "test", TEST))
    await eventually(lambda: gateway.evaluations.requests)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await asyncio.wait_for(gateway.evaluations.cancelled.wait(), 5)
