"""One platform with two workers and short leases for the tests that use it whole; it runs in one test process."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.platform import Platform, Workload
from tunesmith.client import Client

SETTINGS = {
    "TUNESMITH_LEASE_SECONDS": "3",
    "TUNESMITH_BACKOFF_SECONDS": "0.5",
}
WHOLE_PLATFORM = {"e2e", "faults"}


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the marks in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keeps the tests that share the platform in one process, and gives them time for a training."""
    for item in items:
        if WHOLE_PLATFORM & set(Path(item.path).parts):
            item.add_marker(pytest.mark.xdist_group("platform"))
            item.add_marker(pytest.mark.timeout(180))


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
    return Workload.create(platform.data_dir / "datasets" / "whole")
