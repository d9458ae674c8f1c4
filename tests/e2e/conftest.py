"""One platform for the end-to-end tests, as `tunesmith up` starts it."""

from collections.abc import Iterator

import pytest

from tests.support.platform import Platform, Workload


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with Platform(tmp_path_factory.mktemp("platform")) as running:
        yield running


@pytest.fixture(scope="session")
def workload(platform: Platform) -> Workload:
    return Workload.create(platform.data_dir / "datasets" / "e2e")
