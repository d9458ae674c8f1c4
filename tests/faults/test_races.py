"""Two things at once have exactly one outcome."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.platform import Platform, Workload, events_until_end, wait_for_step
from tests.support.waiting import wait_until
from tunesmith.client import Client, FailedPrecondition, NotFound
from tunesmith.task.v1.spec_pb2 import METHOD_LORA
from tunesmith.task.v1.task_pb2 import STATE_COMPLETED, STATE_STOPPED
from tunesmith.task.v1.task_service_pb2 import ListTasksRequest

FINAL = ("task.completed", "task.stopped", "task.failed")


def test_double_submit_is_one_task(client: Client, platform: Platform, workload: Workload) -> None:
    request = workload.request("twice", method=METHOD_LORA, request_id="the-same-id", max_steps=2)

    def submit(_: int) -> str:
        with platform.client() as another:
            return another.tasks.create(request).id

    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(submit, range(8)))
    assert len(ids) == 1
    assert client.tasks.wait(ids.pop()).state == STATE_COMPLETED
    assert len(list(client.tasks.list(ListTasksRequest(name_contains="twice")))) == 1


@pytest.mark.parametrize("stop_at_step", [1, 3, 5])
def test_stop_races_completion(client: Client, workload: Workload, stop_at_step: int) -> None:
    task_id = client.tasks.create(workload.request("race", method=METHOD_LORA, max_steps=5, save_steps=1)).id

    def come_to_step() -> bool:
        task = client.tasks.get(task_id)
        return bool(task.progress.step >= stop_at_step or task.end_time.seconds)

    wait_until(come_to_step, 60, "the task to come to the step")
    try:
        client.tasks.stop(task_id)
    except FailedPrecondition:
        assert client.tasks.get(task_id).state == STATE_COMPLETED
    task = client.tasks.wait(task_id)
    assert task.state in (STATE_COMPLETED, STATE_STOPPED)
    counts = Counter(item.event.type for item in events_until_end(client, task_id))
    assert sum(counts[name] for name in FINAL) == 1


def test_delete_while_running(client: Client, platform: Platform, workload: Workload) -> None:
    task_id = client.tasks.create(workload.request("deleted", method=METHOD_LORA)).id
    task = wait_for_step(client, task_id, 6)
    with pytest.raises(FailedPrecondition):
        client.tasks.delete(task_id)
    client.tasks.delete(task_id, force=True)
    with pytest.raises(NotFound):
        client.tasks.get(task_id)
    wait_until(lambda: not Path(f"/proc/{task.pid}").exists(), 30, "the training process to end")
    stored = platform.data_dir / "objects" / "tasks" / task_id
    wait_until(lambda: not stored.exists(), 60, "the task's objects to be removed")
