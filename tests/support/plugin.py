"""Fixtures with real servers, for every test in the repository. A server starts when the first test asks for it."""

import os
from collections.abc import Iterator

import pytest

from tests.support.nats import NatsServer
from tests.support.postgres import PostgresServer
from tests.support.s3 import JuiceServer, SeaweedServer

# Otherwise gRPC's threads come to life in a server's process between fork and exec, and may end it.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")


@pytest.fixture
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A nats-server of the test's own, with an empty store; it may be killed and restarted."""
    with NatsServer(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture(scope="session")
def shared_nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A nats-server for all tests of this process; leave it running."""
    with NatsServer(tmp_path_factory.mktemp("shared-nats")) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL for all tests of this process."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """SQLAlchemy address of an empty PostgreSQL database."""
    url = postgres_server.create_database()
    yield url
    postgres_server.drop_database(url)


@pytest.fixture(scope="session")
def seaweed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedServer]:
    """SeaweedFS for all tests of this process."""
    with SeaweedServer(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.fixture(scope="session")
def juice_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JuiceServer]:
    """JuiceFS with MinIO's gateway for all tests of this process."""
    with JuiceServer(tmp_path_factory.mktemp("juice")) as server:
        yield server
