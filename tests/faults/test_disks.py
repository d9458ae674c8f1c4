"""Disks that take nothing more: the broker's, and that of a training."""

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from tests.faults.conftest import Reference
from tests.faults.promises import assert_checkpoints_whole, assert_completed_once
from tests.support.platform import Platform, Workload, events_until_end, losses, wait_for_step
from tests.support.waiting import wait_until
from tunesmith.client import Client
from tunesmith.task.v1.spec_pb2 import METHOD_FULL, METHOD_LORA
from tunesmith.task.v1.task_pb2 import STATE_COMPLETED, STATE_FAILED, Task

FAULT_AT_STEP = 12
STRACE = shutil.which("strace")


def refuse_writes(pid: int) -> None:
    """No write of a process to a file succeeds any more."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]))


def said(platform: Platform) -> str:
    """What `tunesmith up` has told people."""
    return (platform.data_dir / "up.out").read_text()


def test_a_broker_whose_disk_takes_nothing_more(
    platform: Platform, client: Client, workload: Workload, reference: Reference
) -> None:
    """Fault 27: reads go on, new tasks are kept, and once the broker can write again everything is made up for."""
    task = client.tasks.create(workload.request("survivor", method=METHOD_FULL))
    wait_for_step(client, task.id, FAULT_AT_STEP)
    broker = platform.process_ids()["nats"]
    refuse_writes(broker)
    before = losses(client, task.id)
    assert before
    second = client.tasks.create(workload.request("accepted meanwhile", method=METHOD_LORA, max_steps=2))
    assert client.tasks.get(second.id).name == "accepted meanwhile"
    wait_until(lambda: platform.process_ids()["nats"] not in (0, broker), 60, "the broker to be started again")
    assert "nats cannot store messages" in said(platform)
    finished = assert_completed_once(client, task.id, reference)
    assert finished.attempt == 1
    assert client.tasks.wait(second.id).state == STATE_COMPLETED
    assert before.items() <= losses(client, task.id).items()
    platform.wait_healthy()


@contextmanager
def broken_disk(pid: int) -> Iterator[None]:
    """What a process brings to disk fails with EIO, as on a disk that breaks."""
    calls = "fsync,fdatasync"
    command = [str(STRACE), "-f", "-qq", "-p", str(pid), "-o", os.devnull, "-e", f"trace={calls}"]
    tracer = subprocess.Popen([*command, "-e", f"inject={calls}:error=EIO"], stderr=subprocess.PIPE)
    try:
        yield
    finally:
        tracer.terminate()
        tracer.communicate()


@pytest.mark.skipif(STRACE is None or os.geteuid() != 0, reason="only root with strace breaks another process's disk")
def test_a_disk_that_breaks_while_a_model_trains(
    platform: Platform, client: Client, workload: Workload, reference: Reference
) -> None:
    """Fault 28: what did not come to disk is no checkpoint, and the next attempt goes on from the one before."""
    task = client.tasks.create(workload.request("broken disk", method=METHOD_FULL))
    task = wait_for_step(client, task.id, FAULT_AT_STEP)
    with broken_disk(task.pid):
        wait_until(lambda: client.tasks.get(task.id).attempt == 2, 60, "the attempt to end")
    finished = assert_completed_once(client, task.id, reference)
    assert finished.attempt == 2
    assert len(assert_checkpoints_whole(platform, client, task.id)) > 2
    assert "files could not be read or written" in log_of(client, task.id)


def test_a_disk_that_stays_broken_ends_a_training(
    platform: Platform, client: Client, workload: Workload, reference: Reference
) -> None:
    """Fault 28: it fails with the reason, and goes on from its last checkpoint once the disk is mended."""
    task_id = client.tasks.create(workload.request("disk that stays broken", method=METHOD_FULL)).id
    wait_for_step(client, task_id, FAULT_AT_STEP)
    broken: set[int] = set()

    def broken_until_failed() -> Task | None:
        task = client.tasks.get(task_id)
        if task.pid and task.pid not in broken:
            with suppress(ProcessLookupError):
                refuse_writes(task.pid)
                broken.add(task.pid)
        return task if task.state == STATE_FAILED else None

    task = wait_until(broken_until_failed, 120, "the task to fail")
    assert task.error.reason == "STORAGE_FAILED", task.error
    assert "files could not be read or written" in task.error.message
    steps = assert_checkpoints_whole(platform, client, task_id)
    told = [item.event for item in events_until_end(client, task_id) if item.event.type == "checkpoint.saved"]
    assert sorted(event.checkpoint.checkpoint.step for event in told) == sorted(steps)
    client.tasks.resume(task_id)
    assert client.tasks.wait(task_id).state == STATE_COMPLETED
    assert losses(client, task_id) == pytest.approx(reference.losses, rel=1e-5)


def log_of(client: Client, task_id: str) -> str:
    """The whole log of a task."""
    return "\n".join(line.text for line in client.tasks.logs(task_id).lines)
