"""A damaged checkpoint is passed over with a message that names it; the one before is used."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import Reference
from tests.support.platform import Platform, Workload, events_until_end, losses, wait_for_step
from tunesmith.client import Client
from tunesmith.task.v1.spec_pb2 import METHOD_FULL
from tunesmith.task.v1.task_pb2 import STATE_COMPLETED, STATE_FAILED, STATE_STOPPED


def truncate(file: Path) -> None:
    with file.open("r+b") as handle:
        handle.truncate(file.stat().st_size // 2)


def flip_one_bit(file: Path) -> None:
    with file.open("r+b") as handle:
        handle.seek(file.stat().st_size // 2)
        byte = handle.read(1)[0]
        handle.seek(-1, 1)
        handle.write(bytes([byte ^ 1]))


@pytest.fixture
def stopped_task(platform: Platform, client: Client, workload: Workload) -> str:
    """A task stopped after at least two checkpoints."""
    task_id = client.tasks.create(workload.request("stopped", method=METHOD_FULL)).id
    wait_for_step(client, task_id, 12)
    client.tasks.stop(task_id)
    assert client.tasks.wait(task_id).state == STATE_STOPPED
    assert len(client.tasks.checkpoints(task_id)) >= 2
    return task_id


def stored_file(platform: Platform, prefix: str, name: str) -> Path:
    return platform.data_dir / "objects" / prefix / name


@pytest.mark.parametrize("damage", [truncate, flip_one_bit])
def test_damaged_checkpoint_is_passed_over(
    platform: Platform, client: Client, stopped_task: str, reference: Reference, damage: Callable[[Path], None]
) -> None:
    newest = client.tasks.checkpoints(stopped_task)[-1]
    damage(stored_file(platform, newest.prefix, "model.safetensors"))
    client.tasks.resume(stopped_task)
    task = client.tasks.wait(stopped_task)
    assert task.state == STATE_COMPLETED, task.error
    assert losses(client, stopped_task) == pytest.approx(reference.losses, rel=1e-5)
    rejected = [
        item.event for item in events_until_end(client, stopped_task) if item.event.type == "checkpoint.rejected"
    ]
    assert [event.checkpoint.checkpoint.step for event in rejected] == [newest.step]
    assert "model.safetensors" in rejected[0].checkpoint.reason
    log = "\n".join(line.text for line in client.tasks.logs(stopped_task).lines)
    assert f"checkpoint-{newest.step}" in log
    assert "model.safetensors" in log


def test_named_checkpoint_is_never_replaced_by_another(platform: Platform, client: Client, stopped_task: str) -> None:
    newest = client.tasks.checkpoints(stopped_task)[-1]
    flip_one_bit(stored_file(platform, newest.prefix, "optimizer.pt"))
    client.tasks.resume(stopped_task, checkpoint_step=newest.step)
    task = client.tasks.wait(stopped_task)
    assert task.state == STATE_FAILED
    assert "optimizer.pt" in task.error.message
