"""Whatever is killed while a model is evaluated or exported: it starts again and ends once, nothing half done shows."""

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from modelkit.checkpoints import MANIFEST, sha256_of, verify
from tests.support.platform import Platform, Workload, events_until_end
from tests.support.waiting import wait_until
from tunesmith.client import Client, evaluation_request, export_request
from tunesmith.task.v1.spec_pb2 import METHOD_LORA
from tunesmith.task.v1.task_pb2 import STATE_COMPLETED, STATE_RUNNING, STATE_STOPPED, State, Task
from tunesmith.task.v1.task_service_pb2 import CreateTaskRequest
from workerkit.output import OWNER

TYPES = ["F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"]
FINAL = ("task.completed", "task.stopped", "task.failed")

Wish = Callable[[str, Workload], CreateTaskRequest]


def evaluation(task_id: str, workload: Workload) -> CreateTaskRequest:
    """One that takes long enough to be interrupted."""
    parameters = {"max_samples": 32, "min_samples": 32, "max_tokens": 32}
    data = str(workload.dataset)
    return evaluation_request("interrupted evaluation", task_id, (), parameters, base_model=True, dataset=data)


def export(task_id: str, _: Workload) -> CreateTaskRequest:
    """One of many files."""
    return export_request("interrupted export", task_id, "gguf", TYPES)


@pytest.fixture(scope="module")
def trained(platform: Platform, workload: Workload) -> str:
    """A task with a checkpoint and an adapter."""
    with platform.client() as client:
        request = workload.request("to be looked at", method=METHOD_LORA, max_steps=4, save_steps=2)
        task = client.tasks.wait(client.tasks.create(request).id)
        assert task.state == STATE_COMPLETED, task.error
        return task.id


def working(client: Client, task_id: str) -> Task:
    """The task, once a child has begun with it."""

    def has_begun() -> Task | None:
        task = client.tasks.get(task_id)
        if task.end_time.seconds:
            raise AssertionError(f"the task ended early: {State.Name(task.state)} {task.error}")
        return task if task.state == STATE_RUNNING and task.pid and task.progress.step else None

    return wait_until(has_begun, 60, f"a child to work on task {task_id}")


def kill_child(platform: Platform, task: Task) -> None:
    os.kill(task.pid, signal.SIGKILL)


def kill_worker(platform: Platform, task: Task) -> None:
    os.kill(int(task.worker.rsplit("-", 1)[-1]), signal.SIGKILL)


def assert_whole(platform: Platform, task: Task) -> None:
    """The result is where it belongs, as its manifest says, and nothing else lies beside it."""
    output = Path(task.output_dir)
    manifest = verify(output)
    named = {file.path for file in manifest.files}
    present = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    assert present == named | {MANIFEST, OWNER}
    leftovers = [path.name for path in output.parent.iterdir() if path.name.startswith(".") and task.id in path.name]
    assert leftovers == []
    stored = platform.data_dir / "objects" / "tasks" / task.id / "attempts" / str(task.attempt) / "output"
    for name in named:
        assert sha256_of(stored / name) == sha256_of(output / name)


def assert_ended_once(client: Client, task_id: str) -> None:
    counts = Counter(item.event.type for item in events_until_end(client, task_id))
    assert sum(counts[name] for name in FINAL) == 1


@pytest.mark.parametrize("fault", [kill_child, kill_worker], ids=["child", "worker"])
@pytest.mark.parametrize("wish", [evaluation, export])
def test_it_starts_again_and_ends_once(
    platform: Platform,
    client: Client,
    workload: Workload,
    trained: str,
    wish: Wish,
    fault: Callable[[Platform, Task], None],
) -> None:
    task_id = client.tasks.create(wish(trained, workload)).id
    task = working(client, task_id)
    fault(platform, task)
    task = client.tasks.wait(task_id)
    assert task.state == STATE_COMPLETED, task.error
    assert task.attempt == 2
    assert_ended_once(client, task_id)
    assert_whole(platform, task)
    platform.wait_healthy()


@pytest.mark.parametrize("wish", [evaluation, export])
def test_stop_shows_nothing(platform: Platform, client: Client, workload: Workload, trained: str, wish: Wish) -> None:
    task_id = client.tasks.create(wish(trained, workload)).id
    task = working(client, task_id)
    client.tasks.stop(task_id)
    wait_until(lambda: client.tasks.get(task_id).state == STATE_STOPPED, 20, "the task to stop")
    assert_ended_once(client, task_id)
    wait_until(lambda: not Path(f"/proc/{task.pid}").exists(), 20, "its child to be gone")
    outputs = platform.data_dir / "outputs"
    assert [path for path in outputs.rglob(f"*{task_id}*") if any(path.iterdir())] == []


def test_two_exports_side_by_side(platform: Platform, client: Client, workload: Workload, trained: str) -> None:
    first, second = (client.tasks.create(export(trained, workload)).id for _ in range(2))
    workers = {working(client, task_id).pid for task_id in (first, second)}
    assert len(workers) == 2
    results = []
    for task_id in (first, second):
        task = client.tasks.wait(task_id)
        assert task.state == STATE_COMPLETED, task.error
        assert_whole(platform, task)
        results.append(
            {item.name: item.sha256 for item in client.exports.get(task_id).artifacts if ".gguf" in item.name}
        )
    assert results[0] == results[1]
    assert len(results[0]) == len(TYPES)
