"""The curve and the model of a training that nothing disturbs, to compare with."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.platform import Platform, Workload, losses
from tunesmith.task.v1.spec_pb2 import METHOD_FULL
from tunesmith.task.v1.task_pb2 import STATE_COMPLETED


@dataclass(frozen=True)
class Reference:
    """What an undisturbed run records."""

    losses: dict[int, float]
    output: Path


@pytest.fixture(scope="session")
def reference(platform: Platform, workload: Workload) -> Reference:
    with platform.client() as client:
        task = client.tasks.create(workload.request("reference", method=METHOD_FULL))
        task = client.tasks.wait(task.id)
        assert task.state == STATE_COMPLETED, task.error
        return Reference(losses(client, task.id), Path(task.output_dir))
