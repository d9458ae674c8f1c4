"""The export service as a process: it serves, works on exports alone, and takes little memory while idle."""

import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from servicekit.bus import EventBus
from servicekit.grpc_client import open_channel
from services.workerkit.tests import fixtures
from services.workerkit.tests.desk import Desk, payloads
from services.workerkit.tests.service_process import service_process
from tests.support.nats import NatsServer
from tests.support.process import ServerProcess
from tests.support.waiting import eventually
from tunesmith.export.v1 import export_service_pb2, export_service_pb2_grpc
from tunesmith.task.v1 import spec_pb2

Running = tuple[ServerProcess, int]

shared_nats_server, bus, desk_port = fixtures.shared_nats_server, fixtures.bus, fixtures.desk_port


@pytest.fixture
def desk(bus: EventBus) -> Desk:
    return Desk(bus, f"pool-{secrets.token_hex(4)}", "export")


@pytest.fixture
def service(desk: Desk, desk_port: int, shared_nats_server: NatsServer, tmp_path: Path) -> Iterator[Running]:
    settings = {"task_service_target": f"127.0.0.1:{desk_port}", "nats_url": shared_nats_server.url, "pool": desk.pool}
    with service_process("export_service", tmp_path, **settings) as running:
        yield running


async def test_serves_and_has_no_child_before_one_is_needed(service: Running) -> None:
    process, port = service
    async with open_channel(f"127.0.0.1:{port}") as channel:

        async def healthy() -> bool:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

        await eventually(healthy)
        stub = export_service_pb2_grpc.ExportServiceStub(channel)
        assert (await stub.ListFormats(export_service_pb2.ListFormatsRequest())).formats
    assert not psutil.Process(process.pid).children()
    assert not any("libtorch" in entry.path for entry in psutil.Process(process.pid).memory_maps())


async def test_works_on_exports(service: Running, desk: Desk) -> None:
    trainings = Desk(desk.bus, desk.pool)
    training = await trainings.submit(spec_pb2.FinetuneSpec())
    spec = spec_pb2.ExportSpec(source_task_id="gone", format=spec_pb2.EXPORT_FORMAT_MERGED)
    task_id = await desk.submit(spec)
    (failed,) = payloads(await desk.facts_until(task_id, "failed"), "failed")
    assert failed.error.problems
    assert await trainings.waiting_messages(training) == 1
    process, _ = service
    process.send(signal.SIGTERM)
    await eventually(lambda: not process.running)
