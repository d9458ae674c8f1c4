"""The export service over a real gRPC server: what it describes, and how it refuses the rest."""

from collections.abc import AsyncIterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from export_service.settings import ExportSettings
from export_service.setup import NAME, servicers
from servicekit.errors import InvalidArgument, Unimplemented
from servicekit.grpc_client import open_channel
from servicekit.grpc_server import running_server
from tunesmith.export.v1 import export_service_pb2 as pb
from tunesmith.export.v1 import export_service_pb2_grpc
from tunesmith.task.v1 import spec_pb2

K_QUANTS = {"Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K"}
I_QUANTS = {"IQ1_S", "IQ1_M", "IQ2_S", "IQ2_M", "IQ3_S", "IQ3_M", "IQ4_NL", "IQ4_XS"}
PLAIN = {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16", "F32"}


@pytest.fixture
async def channel() -> AsyncIterator[grpc.aio.Channel]:
    async with (
        running_server(ExportSettings(port=0, drain_seconds=0), servicers()) as server,
        open_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        yield channel


async def formats(channel: grpc.aio.Channel) -> list[pb.Format]:
    stub = export_service_pb2_grpc.ExportServiceStub(channel)
    return list((await stub.ListFormats(pb.ListFormatsRequest())).formats)


async def test_reports_healthy(channel: grpc.aio.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    for name in ("", NAME):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_describes_every_format_once_and_promises_none(channel: grpc.aio.Channel) -> None:
    found = await formats(channel)
    assert len({(item.format, item.quantization) for item in found}) == len(found)
    assert {item.format for item in found} == set(spec_pb2.ExportFormat.values()) - {0}
    assert not any(item.available for item in found)
    assert all(item.description for item in found)


async def test_describes_every_quantization(channel: grpc.aio.Channel) -> None:
    found = await formats(channel)
    quantized = {item.quantization: item for item in found if item.format == spec_pb2.EXPORT_FORMAT_GGUF}
    assert set(quantized) == K_QUANTS | I_QUANTS | PLAIN
    assert all(1.5 < item.bits_per_weight <= 32 for item in quantized.values())
    assert all("divisible by 256" in quantized[name].description for name in K_QUANTS | I_QUANTS - {"IQ4_NL"})
    sizes = [quantized[name].bits_per_weight for name in ("Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "F16")]
    assert sizes == sorted(sizes)
    others = [item for item in found if item.format != spec_pb2.EXPORT_FORMAT_GGUF]
    assert all(not item.quantization and item.bits_per_weight == 0 for item in others)


@pytest.mark.parametrize(
    ("method", "request_message"),
    [
        (
            "CreateExport",
            pb.CreateExportRequest(spec=spec_pb2.ExportSpec(source_task_id="a", format=spec_pb2.EXPORT_FORMAT_GGUF)),
        ),
        ("GetExport", pb.GetExportRequest(task_id="a")),
        ("ListExports", pb.ListExportsRequest()),
    ],
)
async def test_refuses_what_comes_later(channel: grpc.aio.Channel, method: str, request_message: object) -> None:
    stub = export_service_pb2_grpc.ExportServiceStub(channel)
    with pytest.raises(Unimplemented, match="does not export models yet") as caught:
        await getattr(stub, method)(request_message)
    assert caught.value.reason == "NOT_IMPLEMENTED"


async def test_refuses_to_download(channel: grpc.aio.Channel) -> None:
    stub = export_service_pb2_grpc.ExportServiceStub(channel)
    with pytest.raises(Unimplemented, match="does not export models yet") as caught:
        async for _ in stub.DownloadArtifact(pb.DownloadArtifactRequest(task_id="a", name="model.gguf")):
            pytest.fail("bytes from a version that writes none")
    assert caught.value.reason == "NOT_IMPLEMENTED"


async def test_names_every_bad_field_before_it_refuses(channel: grpc.aio.Channel) -> None:
    stub = export_service_pb2_grpc.ExportServiceStub(channel)
    with pytest.raises(InvalidArgument) as caught:
        await stub.CreateExport(pb.CreateExportRequest(spec=spec_pb2.ExportSpec(checkpoint_step=-1)))
    fields = {problem.field for problem in caught.value.problems}
    assert fields == {"spec.source_task_id", "spec.checkpoint_step", "spec.format"}
