"""The export service as a process: it serves, works on exports alone, and takes little memory while idle."""

import signal

from servicekit.grpc_client import open_channel
from services.workerkit.tests import fixtures
from services.workerkit.tests.desk import Desk, payloads
from services.workerkit.tests.service_process import Running, is_idle, until_healthy
from tests.support.waiting import eventually
from tunesmith.export.v1 import export_service_pb2, export_service_pb2_grpc
from tunesmith.task.v1 import spec_pb2

service = fixtures.service_of("export_service")


async def test_serves_and_has_no_child_before_one_is_needed(service: Running) -> None:
    process, port = service
    async with open_channel(f"127.0.0.1:{port}") as channel:
        await until_healthy(channel)
        stub = export_service_pb2_grpc.ExportServiceStub(channel)
        assert (await stub.ListFormats(export_service_pb2.ListFormatsRequest())).formats
    assert is_idle(process)


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
