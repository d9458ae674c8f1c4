"""Both clients against a real HTTP server: every call, retries, streams that break."""

import math
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tunesmith.client import (
    AsyncClient,
    Client,
    Config,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Problem,
    Unauthenticated,
    Unavailable,
    finetune_request,
)
from tunesmith.client.uploading import CHUNK_BYTES
from tunesmith.task.v1.task_pb2 import STATE_COMPLETED, STATE_PENDING, STATE_STOPPED, STATE_STOPPING
from tunesmith.task.v1.task_service_pb2 import CreateTaskRequest, ListTasksRequest


@pytest.fixture
def client(server: Any) -> Iterator[Client]:
    with Client(config=server.config) as client:
        yield client


@pytest.fixture
async def async_client(server: Any) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(config=server.config) as client:
        yield client


def progress_events(count: int) -> list[dict[str, Any]]:
    steps = [{"event": {"type": "task.progressed", "progress": {"step": str(step)}}} for step in range(count - 1)]
    return [*steps, {"event": {"type": "task.completed", "task": {"state": "STATE_COMPLETED"}}}]


def test_every_call(client: Client, server: Any) -> None:
    task = client.tasks.create(finetune_request("first", "model", "data.jsonl", {"learning_rate": 2e-4}))
    assert (task.name, task.spec.finetune.training.learning_rate) == ("first", 2e-4)
    assert client.tasks.get(task.id).state == STATE_PENDING
    assert client.tasks.stop(task.id).state == STATE_STOPPING
    assert client.tasks.stop(task.id, discard=True).state == STATE_STOPPED
    assert client.tasks.resume(task.id, checkpoint_step=5).state == STATE_PENDING
    assert server.requests[-1][3] == {"checkpoint_step": "5"}
    assert [line.text for line in client.tasks.logs(task.id, tail=2).lines] == ["line 3", "line 4"]
    (series,) = client.tasks.metrics(task.id, ["loss"], max_points=10)
    assert list(series.steps) == [1, 2] and math.isnan(series.values[1])
    assert server.requests[-1][1].endswith("/metrics?names=loss&max_points=10")
    assert [item.step for item in client.tasks.checkpoints(task.id)] == [5]
    assert [device.cores for device in client.devices()] == [2]
    assert [model.id for model in client.base_models("language_model")] == ["language_model"]
    client.tasks.delete(task.id)
    with pytest.raises(NotFound, match=task.id):
        client.tasks.get(task.id)


async def test_every_call_asynchronously(async_client: AsyncClient) -> None:
    tasks = async_client.tasks
    task = await tasks.create(finetune_request("first", "model", "data.jsonl"))
    assert (await tasks.get(task.id)).state == STATE_PENDING
    assert (await tasks.stop(task.id)).state == STATE_STOPPING
    assert (await tasks.resume(task.id)).state == STATE_PENDING
    assert (await tasks.logs(task.id)).total_lines == 5
    assert [series.name for series in await tasks.metrics(task.id)] == ["loss"]
    assert [item.step for item in await tasks.checkpoints(task.id)] == [5]
    assert [device.id for device in await async_client.devices()] == ["cpu"]
    assert [item.id async for item in tasks.list()] == [task.id]
    await tasks.delete(task.id)
    with pytest.raises(NotFound):
        await tasks.get(task.id)


def test_list_walks_through_all_pages(client: Client, server: Any) -> None:
    for number in range(5):
        server.add_task(f"task {number}")
    assert [task.number for task in client.tasks.list()] == [1, 2, 3, 4, 5]
    assert [task.number for task in client.tasks.list(ListTasksRequest(name_contains="3"))] == [4]


def test_errors_list_every_problem(client: Client) -> None:
    with pytest.raises(InvalidArgument) as caught:
        client.tasks.create(CreateTaskRequest())
    error = caught.value
    assert error.problems == (
        Problem("name", "must not be empty"),
        Problem("spec.finetune.base_model", "does not exist"),
    )
    assert (error.http_status, error.reason) == (400, "INVALID_ARGUMENT_REASON")
    assert str(error).splitlines()[1:] == [
        "  - name: must not be empty",
        "  - spec.finetune.base_model: does not exist",
    ]


def test_wrong_token_is_told_at_once(server: Any) -> None:
    with Client(config=Config(server.url, "wrong")) as client, pytest.raises(Unauthenticated, match="not valid"):
        client.devices()
    assert len(server.requests) == 1


def test_status_decides_between_errors_with_one_http_status(client: Client, server: Any) -> None:
    task_id = server.add_task("running", "STATE_RUNNING")
    with pytest.raises(FailedPrecondition, match="running"):
        client.tasks.delete(task_id)
    client.tasks.delete(task_id, force=True)


@pytest.mark.parametrize("faults", [[503, 503], ["drop", 502, "drop"], ["drop after"]])
def test_reads_are_repeated(client: Client, server: Any, faults: list[Any]) -> None:
    server.faults = list(faults)
    assert [device.id for device in client.devices()] == ["cpu"]
    assert len(server.requests) == len(faults) + 1


async def test_reads_are_repeated_asynchronously(async_client: AsyncClient, server: Any) -> None:
    server.faults = ["drop", 503]
    assert [device.id for device in await async_client.devices()] == ["cpu"]


def test_repeated_create_makes_one_task(client: Client, server: Any) -> None:
    server.faults = ["drop after", 503]
    task = client.tasks.create(CreateTaskRequest(name="once"))
    assert len(server.tasks) == 1
    assert {request[3]["request_id"] for request in server.requests} == {next(iter(server.by_request_id))}
    assert task.id in server.tasks


def test_calls_that_may_have_worked_are_not_repeated(client: Client, server: Any) -> None:
    task_id = server.add_task("running", "STATE_RUNNING")
    server.faults = ["drop after"]
    with pytest.raises(Unavailable, match="did not answer"):
        client.tasks.resume(task_id)
    assert len(server.requests) == 1


def test_retries_end(client: Client, server: Any) -> None:
    server.faults = [503] * 10
    with pytest.raises(Unavailable, match="try again"):
        client.devices()
    assert len(server.requests) == 4


def test_errors_that_do_not_pass_are_not_retried(client: Client, server: Any) -> None:
    server.faults = [500]
    with pytest.raises(Exception, match="try again"):
        client.devices()
    assert len(server.requests) == 1


def test_nobody_at_the_address(free_address: str) -> None:
    with (
        Client(config=Config(free_address, retries=0)) as client,
        pytest.raises(Unavailable, match=f"cannot reach {free_address}"),
    ):
        client.devices()


@pytest.fixture
def free_address() -> Iterator[str]:
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def script(server: Any) -> Callable[..., None]:
    """Scripts the connections of a stream as (events, how it ends)."""

    def set_connections(*connections: tuple[int, str]) -> None:
        server.connections = list(connections)

    return set_connections


@pytest.mark.parametrize(
    "connections",
    [
        [(6, "end")],
        [(2, "break"), (4, "close"), (6, "end")],
        [(0, "break"), (3, "half"), (3, "break"), (6, "end")],
    ],
)
def test_stream_goes_on_where_it_broke(
    client: Client, server: Any, script: Callable[..., None], connections: list[tuple[int, str]]
) -> None:
    server.events = progress_events(6)
    script(*connections)
    events = [response.event for response in client.tasks.watch("x")]
    assert [event.progress.step for event in events[:-1]] == [0, 1, 2, 3, 4]
    assert events[-1].task.state == STATE_COMPLETED
    seen = [0]
    for upto, _ in connections[:-1]:
        seen.append(max(upto, seen[-1]))
    assert server.last_event_ids == [str(number) if number else "" for number in seen]


async def test_asynchronous_stream_goes_on_where_it_broke(
    async_client: AsyncClient, server: Any, script: Callable[..., None]
) -> None:
    server.events = progress_events(6)
    script((1, "break"), (4, "half"), (6, "end"))
    events = [response.event async for response in async_client.tasks.watch("x")]
    assert [event.progress.step for event in events[:-1]] == [0, 1, 2, 3, 4]


def test_stream_that_worked_is_waited_for_longer(server: Any, script: Callable[..., None]) -> None:
    server.events = progress_events(3)
    script((2, "break"), (3, "end"))
    steps = []
    with Client(config=replace(server.config, retries=1)) as client:
        for response in client.tasks.watch("x"):
            steps.append(response.event.progress.step)
            if len(steps) == 1:
                server.faults = ["drop", 503]
    assert steps == [0, 1, 0]


def test_error_in_a_stream(client: Client, server: Any, script: Callable[..., None]) -> None:
    server.events = progress_events(3)
    script((1, "error"))
    with pytest.raises(NotFound, match="deleted"):
        list(client.tasks.watch("x"))


def test_stream_refused(client: Client, server: Any) -> None:
    server.faults = [500]
    with pytest.raises(Exception, match="try again"):
        next(client.tasks.watch("x"))


def test_stream_left_early_closes_its_connection(client: Client, server: Any, script: Callable[..., None]) -> None:
    server.events = progress_events(3)
    script((1, "hold"))
    stream = client.tasks.watch("x")
    assert next(stream).event.type == "task.progressed"
    stream.close()
    assert [device.id for device in client.devices()] == ["cpu"]


def test_wait_returns_the_ended_task(client: Client, server: Any, script: Callable[..., None]) -> None:
    task_id = server.add_task("done", "STATE_COMPLETED", output_dir="/models/done")
    server.events = progress_events(2)
    script((2, "hold"))
    assert client.tasks.wait(task_id).output_dir == "/models/done"


async def test_wait_asynchronously(async_client: AsyncClient, server: Any, script: Callable[..., None]) -> None:
    task_id = server.add_task("done", "STATE_COMPLETED")
    server.events = progress_events(2)
    script((2, "hold"))
    assert (await async_client.tasks.wait(task_id)).state == STATE_COMPLETED


def test_a_file_is_uploaded_in_pieces(client: Client, server: Any, tmp_path: Path) -> None:
    server.faults = [503, None]
    file = tmp_path / "数据.jsonl"
    file.write_bytes(b"x" * (2 * CHUNK_BYTES + 5))
    seen: list[tuple[int, int]] = []
    dataset = client.datasets.upload(
        file, name="mine", kind="llm", progress=lambda done, size: seen.append((done, size))
    )
    assert (dataset.name, dataset.type, dataset.file_name) == ("mine", "llm", "数据.jsonl")
    assert dataset.size == file.stat().st_size
    size = dataset.size
    once = [(CHUNK_BYTES, size), (2 * CHUNK_BYTES, size), (size, size)]
    assert seen == [*once, *once], "from the start again after a try that failed"
    assert "Transfer-Encoding" not in server.requests[-1][2]


async def test_a_file_is_uploaded_from_asyncio(async_client: AsyncClient, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"x" * (CHUNK_BYTES + 1))
    seen: list[int] = []
    dataset = await async_client.datasets.upload(file, progress=lambda done, _: seen.append(done))
    assert (dataset.size, dataset.file_name) == (CHUNK_BYTES + 1, "a.txt")
    assert seen == [CHUNK_BYTES, CHUNK_BYTES + 1]
    with pytest.raises(InvalidArgument, match="is a directory"):
        await async_client.datasets.upload(tmp_path)


def test_all_tasks_are_watched(client: Client, server: Any, script: Callable[..., None]) -> None:
    server.events = progress_events(3)
    script((2, "break"), (3, "hold"))
    stream = client.tasks.watch_all()
    assert [next(stream).event.type for _ in range(3)] == ["task.progressed", "task.progressed", "task.completed"]
    stream.close()
    assert server.last_event_ids == ["", "2"]
