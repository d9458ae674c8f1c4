"""Fixtures of workers under test, for every service that has one."""

import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from servicekit.bus import EventBus
from servicekit.grpc_server import running_server
from servicekit.objects import ObjectStore, open_object_store
from servicekit.settings import ServiceSettings
from services.workerkit.tests.desk import NAME, Desk
from services.workerkit.tests.known_tasks import TaskOffice, running_tasks
from services.workerkit.tests.service_process import Running, service_process
from tests.support.nats import NatsServer
from tunesmith.task.v1 import task_service_pb2_grpc


@pytest.fixture(scope="session")
def shared_nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A nats-server for these tests alone: they read the facts that elsewhere the task service consumes."""
    with NatsServer(tmp_path_factory.mktemp("worker-nats")) as server:
        yield server


@pytest.fixture
async def bus(shared_nats_server: NatsServer) -> AsyncIterator[EventBus]:
    bus = await EventBus.connect(shared_nats_server.url, name="desk")
    await bus.ensure_streams()
    yield bus
    await bus.close()


def desk_for(kind: str) -> Any:
    """A fixture of a desk whose tasks are of a kind, in a pool of its own."""

    @pytest.fixture
    def desk(bus: EventBus) -> Desk:
        return Desk(bus, f"pool-{secrets.token_hex(4)}", kind)

    return desk


desk = desk_for("finetune")


def service_of(module: str) -> Any:
    """A fixture of a service that runs as a process and works for the desk."""

    @pytest.fixture
    def service(desk: Desk, desk_port: int, shared_nats_server: NatsServer, tmp_path: Path) -> Iterator[Running]:
        target, nats_url = f"127.0.0.1:{desk_port}", shared_nats_server.url
        with service_process(
            module, tmp_path, task_service_target=target, nats_url=nats_url, pool=desk.pool
        ) as running:
            yield running

    return service


@pytest.fixture
async def desk_port(desk: Desk) -> AsyncIterator[int]:
    servicers = [(task_service_pb2_grpc.add_TaskServiceServicer_to_server, desk, NAME)]
    async with running_server(ServiceSettings(drain_seconds=0), servicers) as server:
        yield server.port


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[TaskOffice]:
    """A task service that tells users of their tasks."""
    async with running_tasks(tmp_path / "public.pem") as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_object_store(f"file://{tmp_path}/objects")
