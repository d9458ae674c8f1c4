"""What holds after each fault."""

from collections import Counter

import pytest
from safetensors.torch import load_file
from torch import equal

from modelkit.checkpoints import verify
from tests.faults.conftest import Reference
from tests.support.platform import Platform, events_until_end, losses
from tunesmith.client import Client
from tunesmith.task.v1.task_pb2 import STATE_COMPLETED, Task


def assert_completed_once(client: Client, task_id: str, reference: Reference) -> Task:
    """The task ends COMPLETED once, its curve is unbroken and its weights are those of an undisturbed training."""
    task = client.tasks.wait(task_id)
    assert task.state == STATE_COMPLETED, task.error
    events = [response.event for response in events_until_end(client, task_id)]
    counts = Counter(event.type for event in events)
    assert counts["task.completed"] == 1
    assert counts["task.created"] == 1
    assert counts["task.failed"] == counts["task.stopped"] == 0
    assert len({event.id for event in events}) == len(events)
    recorded = losses(client, task_id)
    assert sorted(recorded) == sorted(reference.losses)
    assert recorded == pytest.approx(reference.losses, rel=1e-5)
    weights = load_file(f"{task.output_dir}/model.safetensors")
    expected = load_file(reference.output / "model.safetensors")
    assert all(equal(weights[name], expected[name]) for name in expected)
    return task


def assert_checkpoints_whole(platform: Platform, client: Client, task_id: str) -> list[int]:
    """Every checkpoint that is told of is stored as its manifest says; their steps."""
    checkpoints = client.tasks.checkpoints(task_id)
    for checkpoint in checkpoints:
        verify(platform.data_dir / "objects" / checkpoint.prefix)
    return [checkpoint.step for checkpoint in checkpoints]
