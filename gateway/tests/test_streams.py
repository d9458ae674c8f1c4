"""Streams over HTTP: order, resuming, ending, errors, leaving."""

import asyncio
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from servicekit.errors import FailedPrecondition, Internal
from tests.support.waiting import eventually
from tunesmith.task.v1 import task_pb2, task_service_pb2

WATCH = f"/v1/tasks/{'a' * 26}:watch"
TAIL = f"/v1/tasks/{'a' * 26}/log:tail"


def watched(cursor: str) -> task_service_pb2.WatchTaskResponse:
    message = task_service_pb2.WatchTaskResponse(cursor=cursor)
    message.event.type = "task.progressed"
    message.event.progress.percent = 5
    return message


async def test_events_have_the_cursor_as_id_and_an_end(gateway: Any, parse_events: Any) -> None:
    for message in (watched("1"), watched("2"), None):
        gateway.tasks.events.put_nowait(message)
    response = await gateway.client.get(WATCH)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-accel-buffering"] == "no"
    assert response.text.startswith("retry: ")
    events = parse_events(response.text)
    assert [(event.id, event.name) for event in events] == [("1", "message"), ("2", "message"), ("", "end")]
    assert json.loads(events[0].data)["event"]["progress"]["percent"] == 5


async def test_last_event_id_is_the_cursor(gateway: Any) -> None:
    gateway.tasks.events.put_nowait(None)
    await gateway.client.get(f"{WATCH}?cursor=3", headers={"last-event-id": "8"})
    assert gateway.tasks.requests[-1].cursor == "8"
    gateway.tasks.events.put_nowait(None)
    await gateway.client.get(f"{WATCH}?cursor=3")
    assert gateway.tasks.requests[-1].cursor == "3"


async def test_json_lines_when_asked_for(gateway: Any) -> None:
    line = task_pb2.LogLine(text="step 1\nstep 2")
    gateway.tasks.events.put_nowait(task_service_pb2.TailLogResponse(lines=[line], cursor="1"))
    gateway.tasks.events.put_nowait(Internal("broken"))
    response = await gateway.client.get(TAIL, headers={"accept": "application/x-ndjson"})
    assert response.headers["content-type"] == "application/x-ndjson"
    first, last = (json.loads(text) for text in response.text.splitlines())
    assert first["lines"][0]["text"] == "step 1\nstep 2"
    assert last["error"]["status"] == "INTERNAL"


async def test_an_error_before_the_first_message_has_its_status(gateway: Any) -> None:
    gateway.tasks.error = FailedPrecondition("no log yet", reason="NO_LOG")
    response = await gateway.client.get(TAIL)
    assert response.status_code == 400
    assert response.json()["error"]["reason"] == "NO_LOG"


async def test_an_error_after_that_is_an_event(gateway: Any, parse_events: Any) -> None:
    gateway.tasks.events.put_nowait(watched("1"))
    gateway.tasks.events.put_nowait(FailedPrecondition("gone", reason="GONE"))
    response = await gateway.client.get(WATCH)
    assert response.status_code == 200
    last = parse_events(response.text)[-1]
    assert last.name == "error"
    assert json.loads(last.data)["error"]["reason"] == "GONE"


async def test_a_stream_ends_with_its_token(gateway: Any, parse_events: Any) -> None:
    gateway.tasks.events.put_nowait(watched("1"))
    token = gateway.token(lifetime=timedelta(seconds=4))
    response = await gateway.client.get(WATCH, headers={"authorization": f"Bearer {token}"})
    first, last = parse_events(response.text)
    assert (first.id, last.name) == ("1", "error")
    error = json.loads(last.data)["error"]
    assert (error["code"], error["reason"]) == (401, "TOKEN_EXPIRED")
    await asyncio.wait_for(gateway.tasks.cancelled.wait(), 5)


async def test_messages_are_sent_one_by_one(gateway: Any) -> None:
    async with gateway.client.stream("GET", WATCH) as response:
        chunks = response.aiter_text()
        for number in range(20):
            gateway.tasks.events.put_nowait(watched(str(number)))
            text = await anext(chunks)
            while f"id: {number}\n" not in text:
                text = await anext(chunks)
        gateway.tasks.events.put_nowait(None)


async def test_leaving_cancels_the_call(gateway: Any) -> None:
    gateway.tasks.events.put_nowait(watched("1"))
    async with gateway.client.stream("GET", WATCH) as response:
        await anext(response.aiter_text())
        assert not gateway.tasks.cancelled.is_set()
    await asyncio.wait_for(gateway.tasks.cancelled.wait(), 5)


async def test_leaving_a_quiet_stream_before_its_first_message(gateway: Any) -> None:
    async with gateway.client.stream("GET", WATCH) as response:
        assert response.status_code == 200, "a quiet stream opens nevertheless"
    await asyncio.wait_for(gateway.tasks.cancelled.wait(), 5)


async def test_quiet_streams_show_signs_of_life(start_gateway: Callable[..., Any], tmp_path: Path) -> None:
    async with (
        start_gateway(tmp_path, keepalive_seconds=0.05) as gateway,
        gateway.client.stream("GET", WATCH) as response,
    ):
        text = ""
        async for chunk in response.aiter_text():
            text += chunk
            if text.count(": keep-alive\n\n") == 2:
                break
        assert "data:" not in text


async def test_draining_asks_readers_to_come_back(gateway: Any) -> None:
    gateway.tasks.events.put_nowait(watched("1"))
    async with gateway.client.stream("GET", WATCH) as response:
        chunks = response.aiter_text()
        text = await anext(chunks)
        gateway.closing.set()
        async for chunk in chunks:
            text += chunk
    assert text.count("retry: ") == 2
    assert "event: end" not in text, "the stream has not ended, the connection has"
    await asyncio.wait_for(gateway.tasks.cancelled.wait(), 5)


async def test_many_readers_at_once(gateway: Any) -> None:
    async def read() -> int:
        response = await gateway.client.get(WATCH, headers={"accept": "application/x-ndjson"})
        return len(response.text.splitlines())

    readers = [asyncio.create_task(read()) for _ in range(20)]
    await eventually(lambda: len(gateway.tasks.requests) == 20)
    for _ in readers:
        gateway.tasks.events.put_nowait(watched("1"))
    await eventually(gateway.tasks.events.empty)
    for _ in readers:
        gateway.tasks.events.put_nowait(None)
    assert sum(await asyncio.gather(*readers)) == 20


async def test_streams_of_calls_with_a_body(gateway: Any, parse_events: Any) -> None:
    body = {"task_id": "t", "messages": [{"role": "user", "content": "a b"}]}
    response = await gateway.client.post("/v1/generate", json=body)
    events = parse_events(response.text)
    assert [json.loads(event.data).get("text") for event in events] == ["a", "b", "", None]
    assert [event.name for event in events][-1] == "end"


async def test_leaving_stops_a_generation(gateway: Any) -> None:
    gateway.evaluations.hold = True
    body = {"task_id": "t", "messages": [{"role": "user", "content": "a b"}]}
    async with gateway.client.stream("POST", "/v1/generate", json=body) as response:
        assert "data:" in await anext(response.aiter_text())
        assert not gateway.evaluations.cancelled.is_set()
    await asyncio.wait_for(gateway.evaluations.cancelled.wait(), 5)
