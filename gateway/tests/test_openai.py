"""OpenAI's clients talk to tasks and checkpoints: names, completions whole and in chunks, errors in their shape."""

import asyncio
import json
from typing import Any

import pytest

from gateway.tests.conftest import EXPORT_ID, TASK_ID, Gateway
from servicekit.errors import FailedPrecondition, InvalidArgument, Problem, ResourceExhausted
from tests.support.waiting import eventually
from tunesmith.eval.v1.eval_service_pb2 import GenerateRequest
from tunesmith.task.v1 import spec_pb2, task_pb2

CHAT = "/openai/v1/chat/completions"
MODELS = "/openai/v1/models"
SAY = [{"role": "user", "content": "hello there"}]
PLAIN = {"top_k": 0, "top_p": 1.0, "temperature": 1.0, "repetition_penalty": 1.0, "max_tokens": 4096}


async def chat(gateway: Gateway, **members: Any) -> tuple[int, Any]:
    response = await gateway.client.post(CHAT, json={"model": TASK_ID, "messages": SAY, **members})
    return response.status_code, response.json()


def asked(gateway: Gateway) -> GenerateRequest:
    request = gateway.evaluations.requests[-1]
    assert isinstance(request, GenerateRequest)
    return request


async def chunks(gateway: Gateway, **members: Any) -> tuple[list[Any], str]:
    """The JSON of every event, and the last event as it is."""
    body = {"model": TASK_ID, "messages": SAY, "stream": True, **members}
    response = await gateway.client.post(CHAT, json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [block.removeprefix("data: ") for block in response.text.strip().split("\n\n")]
    return [json.loads(event) for event in events[:-1]], events[-1]


async def test_a_completion(gateway: Gateway) -> None:
    status, document = await chat(gateway, user="u", metadata={"x": 1}, parallel_tool_calls=True)
    assert status == 200
    assert document["object"] == "chat.completion"
    assert document["model"] == TASK_ID
    assert document["id"].startswith("chatcmpl-")
    choice = document["choices"][0]
    assert (choice["index"], choice["message"], choice["finish_reason"]) == (
        0,
        {"role": "assistant", "content": "hellothere"},
        "stop",
    )
    assert document["usage"] == {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    request = asked(gateway)
    assert {name: getattr(request, name) for name in PLAIN} == PLAIN
    await chat(gateway)
    assert asked(gateway).seed != request.seed, "without a seed answers differ"


async def test_what_a_client_asks_for_is_passed_on(gateway: Gateway) -> None:
    parts = [{"type": "text", "text": "hello"}, {"type": "text", "text": " you"}]
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    more: dict[str, Any] = {"temperature": 0, "top_p": 0.5, "seed": -1, "presence_penalty": 1, "top_k": 7, "min_p": 0.1}
    none: dict[str, Any] = {
        "n": 1,
        "frequency_penalty": 0.0,
        "logprobs": None,
        "tools": [],
        "response_format": {"type": "text"},
    }
    status, _ = await chat(gateway, messages=messages, stop="END", max_completion_tokens=9, **more, **none)
    assert status == 200
    request = asked(gateway)
    said = [(message.role, message.content) for message in request.messages]
    assert said == [("system", "Be brief."), ("user", "hello you")]
    assert (request.temperature, request.top_p, request.presence_penalty, request.top_k) == (0, 0.5, 1, 7)
    assert (request.seed, request.max_tokens, list(request.stop)) == (2**32 - 1, 9, ["END"])


async def test_a_stream(gateway: Gateway) -> None:
    events, last = await chunks(gateway)
    assert last == "[DONE]"
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert len({event["id"] for event in events}) == 1
    deltas = [event["choices"][0]["delta"] for event in events]
    assert deltas == [{"role": "assistant", "content": ""}, {"content": "hello"}, {"content": "there"}, {}]
    assert [event["choices"][0]["finish_reason"] for event in events] == [None, None, None, "stop"]
    assert not any("usage" in event for event in events)


async def test_a_stream_with_usage(gateway: Gateway) -> None:
    events, _ = await chunks(gateway, stream_options={"include_usage": True})
    assert [event["usage"] for event in events[:-1]] == [None] * (len(events) - 1)
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["total_tokens"] == 3


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (TASK_ID, ("", 0, False, "")),
        (f"{TASK_ID}:checkpoint-100", ("", 100, False, "")),
        (f"{TASK_ID}:base", ("", 0, True, "")),
        (f"{TASK_ID}:merged_model-Q4_K_M.gguf", ("", 0, False, "merged_model-Q4_K_M.gguf")),
        ("my task", ("", 0, False, "")),
        ("my task:checkpoint-7", ("", 7, False, "")),
    ],
)
async def test_names_of_models(gateway: Gateway, name: str, expected: tuple[Any, ...]) -> None:
    gateway.tasks.add(name="my task")
    status, _ = await chat(gateway, model=name)
    assert status == 200
    request = asked(gateway)
    assert request.task_id == TASK_ID
    assert (request.checkpoint_step, request.base_model, request.artifact) == expected[1:]


async def test_a_name_that_nobody_has(gateway: Gateway) -> None:
    gateway.tasks.add(name="my task")
    for name in ("my", "my task:checkpoint-x", "gpt-4"):
        status, document = await chat(gateway, model=name)
        assert status == 404
        assert document["error"]["code"] == "model_not_found"
        assert document["error"]["param"] == "model"
        assert document["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"model": None}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
        ({"stop": [""]}, "stop"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": 1}, "stream_options"),
    ],
)
async def test_what_is_refused(gateway: Gateway, members: dict[str, Any], param: str) -> None:
    status, document = await chat(gateway, **members)
    assert (status, document["error"]["param"]) == (400, param)
    assert document["error"]["type"] == "invalid_request_error"
    assert param.split("[", maxsplit=1)[0] in document["error"]["message"]
    assert gateway.evaluations.requests == []


@pytest.mark.parametrize("stream", [False, True])
async def test_errors_of_the_service(gateway: Gateway, stream: bool) -> None:
    gateway.evaluations.error = FailedPrecondition("this model classifies", reason="MODEL_CLASSIFIES")
    status, document = await chat(gateway, stream=stream)
    assert (status, document["error"]["code"]) == (400, "model_classifies")
    metadata = {"retry_after_seconds": "5"}
    gateway.evaluations.error = ResourceExhausted("too many wait", reason="GENERATION_QUEUE_FULL", metadata=metadata)
    response = await gateway.client.post(CHAT, json={"model": TASK_ID, "messages": SAY, "stream": stream})
    assert response.headers["retry-after"] == "5"
    status, document = await chat(gateway, stream=stream)
    assert (status, document["error"]["type"]) == (429, "rate_limit_error")
    gateway.evaluations.error = InvalidArgument("messages: 3011 tokens are too many", reason="CONVERSATION_TOO_LONG")
    status, document = await chat(gateway, stream=stream)
    assert (status, document["error"]["param"]) == (400, "messages")
    assert document["error"]["code"] == "context_length_exceeded"
    gateway.evaluations.error = InvalidArgument(problems=[Problem("checkpoint_step", "no such step")])
    status, document = await chat(gateway, stream=stream)
    assert (status, document["error"]["param"]) == (400, "model")


async def test_a_bad_token_is_told_in_their_shape(gateway: Gateway) -> None:
    for header in ("", "Bearer nonsense"):
        response = await gateway.client.get(MODELS, headers={"authorization": header})
        assert response.status_code == 401
        assert response.json()["error"]["type"] == "authentication_error"


async def test_a_route_that_is_not_there_is_no_model_that_is_not_there(gateway: Gateway) -> None:
    for path, status, code in (("/openai/v1/files", 404, "route_not_found"), (CHAT, 405, "method_not_allowed")):
        response = await gateway.client.get(path)
        error = response.json()["error"]
        assert list(error) == ["message", "type", "param", "code"]
        assert (response.status_code, error["param"], error["code"]) == (status, None, code)
        assert response.headers.get("allow") == ("POST" if status == 405 else None)


async def test_a_body_that_is_no_json(gateway: Gateway) -> None:
    response = await gateway.client.post(CHAT, content=b"{")
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "body_not_json"


@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_ends_the_answer(gateway: Gateway, stream: bool) -> None:
    gateway.evaluations.hold = True
    body = {"model": TASK_ID, "messages": SAY, "stream": stream}
    asking = asyncio.create_task(gateway.client.post(CHAT, json=body))
    await eventually(lambda: bool(gateway.evaluations.requests))
    asking.cancel()
    await asyncio.wait_for(gateway.evaluations.cancelled.wait(), 5)


async def test_models_are_tasks_checkpoints_and_exports(gateway: Gateway) -> None:
    task = gateway.tasks.add(name="my task", owner="ada", state=task_pb2.STATE_RUNNING)
    task.spec.finetune.language_model.method = spec_pb2.METHOD_LORA
    export = gateway.tasks.add(id=EXPORT_ID, name="file", state=task_pb2.STATE_COMPLETED)
    export.spec.export.format = spec_pb2.EXPORT_FORMAT_GGUF
    gateway.exports.artifacts = {"m-Q8_0.gguf": b"", "m-F16.gguf": b"", "Modelfile": b""}
    response = await gateway.client.get(MODELS)
    document = response.json()
    assert document["object"] == "list"
    names = {model["id"] for model in document["data"]}
    of_export = {f"{EXPORT_ID}:m-Q8_0.gguf", f"{EXPORT_ID}:m-F16.gguf"}
    assert names == {TASK_ID, f"{TASK_ID}:checkpoint-10", *of_export}
    assert {model["object"] for model in document["data"]} == {"model"}
    one = await gateway.client.get(f"{MODELS}/my task:checkpoint-10")
    assert (one.status_code, one.json()["id"], one.json()["owned_by"]) == (200, "my task:checkpoint-10", "ada")
    missing = await gateway.client.get(f"{MODELS}/{TASK_ID}:checkpoint-300")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


async def test_what_writes_no_text_is_not_listed(gateway: Gateway) -> None:
    task = gateway.tasks.add(state=task_pb2.STATE_COMPLETED)
    task.spec.finetune.language_model.objective = spec_pb2.OBJECTIVE_CLASSIFICATION
    export = gateway.tasks.add(id=EXPORT_ID, state=task_pb2.STATE_COMPLETED)
    export.spec.export.format, export.spec.export.source_task_id = spec_pb2.EXPORT_FORMAT_MERGED, TASK_ID
    response = await gateway.client.get(MODELS)
    assert response.json()["data"] == []
    export.spec.export.source_task_id = "one-that-is-gone"
    response = await gateway.client.get(MODELS)
    assert [model["id"] for model in response.json()["data"]] == [EXPORT_ID]


async def test_the_routes_are_described(gateway: Gateway) -> None:
    document = (await gateway.client.get("/openapi.json")).json()
    assert {MODELS, f"{MODELS}/{{name}}", CHAT} <= set(document["paths"])
    assert "ChatCompletionRequest" in document["components"]["schemas"]
