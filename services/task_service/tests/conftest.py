"""The task service over each database."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.task_service.tests.harness import Client, Service, running_service
from tests.support.nats import NatsServer


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/tasks.db"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
async def service(tmp_path: Path, database_url: str, shared_nats_server: NatsServer) -> AsyncIterator[Service]:
    """A task service whose background duties the test runs."""
    async with running_service(tmp_path, database_url, shared_nats_server.url) as running:
        yield running


@pytest.fixture
async def alice(service: Service) -> Client:
    return service.client("alice")


@pytest.fixture
async def bob(service: Service) -> Client:
    return service.client("bob")
