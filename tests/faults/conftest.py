"""One platform with two workers and short leases, and the curve of a training that nothing disturbed."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.platform import Platform, Workload, losses
from tunesmith.client import Client
from tunesmith.task.v1.spec_pb2 import METHOD_FULL
from tunesmith.task.v1.task_pb2 import STATE_COMPLETED

SETTINGS = {
    "TUNESMITH_LEASE_SECONDS": "3",
    "TUNESMITH_BACKOFF_SECONDS": "0.5",
}


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with Platform(tmp_path_factory.mktemp("platform"), workers=2, settings=SETTINGS) as running:
        yield running


@pytest.fixture
def client(platform: Platform) -> Iterator[Client]:
    platform.wait_healthy()
    with platform.client() as connected:
        yield connected


@pytest.fixture(scope="session")
def workload(platform: Platform) -> Workload:
    return Workload.create(platform.data_dir / "datasets" / "faults")


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
