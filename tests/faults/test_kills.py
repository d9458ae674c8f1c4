"""Whatever process is killed while a model trains: the task ends COMPLETED once, and its curve goes on unbroken."""

import os
import signal
from collections import Counter
from collections.abc import Callable

import pytest

from tests.faults.conftest import Reference
from tests.faults.promises import assert_completed_once
from tests.support.platform import Platform, Workload, events_until_end, wait_for_step
from tests.support.waiting import wait_until
from tunesmith.client import Client
from tunesmith.task.v1.spec_pb2 import METHOD_FULL, METHOD_LORA
from tunesmith.task.v1.task_pb2 import STATE_FAILED, Task

KILL_AT_STEP = 12


def kill_child(platform: Platform, task: Task) -> None:
    os.kill(task.pid, signal.SIGKILL)


def kill_worker(platform: Platform, task: Task) -> None:
    platform.signal(worker_name(platform, task))


def terminate_worker(platform: Platform, task: Task) -> None:
    platform.signal(worker_name(platform, task), signal.SIGTERM)


def kill_service(name: str) -> Callable[[Platform, Task], None]:
    def kill(platform: Platform, task: Task) -> None:
        platform.signal(name)

    return kill


def worker_name(platform: Platform, task: Task) -> str:
    """The process that holds a task: a worker's id ends with its process id."""
    pid = int(task.worker.rsplit("-", 1)[-1])
    return next(name for name, process_id in platform.process_ids().items() if process_id == pid)


@pytest.mark.parametrize(
    ("fault", "attempts"),
    [
        pytest.param(kill_child, 2, id="child"),
        pytest.param(kill_worker, 2, id="worker"),
        pytest.param(terminate_worker, 2, id="worker-terminated"),
        pytest.param(kill_service("task-service"), 1, id="task-service"),
        pytest.param(kill_service("nats"), 1, id="nats"),
        pytest.param(kill_service("gateway"), 1, id="gateway"),
    ],
)
def test_task_survives(
    platform: Platform,
    client: Client,
    workload: Workload,
    reference: Reference,
    fault: Callable[[Platform, Task], None],
    attempts: int,
) -> None:
    task = client.tasks.create(workload.request("survivor", method=METHOD_FULL))
    task = wait_for_step(client, task.id, KILL_AT_STEP)
    fault(platform, task)
    task = assert_completed_once(client, task.id, reference)
    assert task.attempt == attempts
    platform.wait_healthy()


def test_crash_loop_ends_failed_with_the_last_reason(platform: Platform, client: Client, workload: Workload) -> None:
    request = workload.request("crash loop", method=METHOD_LORA, save_steps=1_000_000)
    task_id = client.tasks.create(request).id
    killed: set[int] = set()

    def killed_until_failed() -> Task | None:
        task = client.tasks.get(task_id)
        if task.state == STATE_FAILED:
            return task
        if task.pid and task.pid not in killed:
            try:
                os.kill(task.pid, signal.SIGKILL)
            except ProcessLookupError:
                return None
            killed.add(task.pid)
        return None

    task = wait_until(killed_until_failed, 120, "the crash loop to end")
    assert task.attempt == len(killed) == 3
    assert "SIGKILL" in task.error.message
    assert Counter(item.event.type for item in events_until_end(client, task_id))["task.failed"] == 1


def test_paused_worker_is_fenced(platform: Platform, client: Client, workload: Workload, reference: Reference) -> None:
    task = client.tasks.create(workload.request("paused", method=METHOD_FULL))
    task = wait_for_step(client, task.id, KILL_AT_STEP)
    paused = platform.signal(worker_name(platform, task), signal.SIGSTOP)
    try:
        taken_over = wait_until(
            lambda: (found := client.tasks.get(task.id)).attempt == 2 and found, 60, "another worker to take over"
        )
        assert taken_over.worker != task.worker
    finally:
        os.kill(paused, signal.SIGCONT)
    finished = assert_completed_once(client, task.id, reference)
    assert finished.attempt == 2
    wait_until(lambda: not process_exists(task.pid), 30, "the fenced worker's child to be gone")
    checkpoints = client.tasks.checkpoints(task.id)
    taken_over_at = taken_over.start_time.ToDatetime()
    assert all(
        item.attempt == 2 for item in checkpoints if item.create_time.ToDatetime() > taken_over_at and item.step > 20
    )


def process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
