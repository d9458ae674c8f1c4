"""Wiring of the export service."""

from export_service.servicer import ExportServicer
from export_service.settings import ExportSettings
from servicekit import telemetry
from servicekit.grpc_server import Servicer, running_server
from servicekit.runtime import shutdown_event
from tunesmith.export.v1 import export_service_pb2, export_service_pb2_grpc

NAME = export_service_pb2.DESCRIPTOR.services_by_name["ExportService"].full_name


def servicers() -> list[Servicer]:
    """What the server serves."""
    return [(export_service_pb2_grpc.add_ExportServiceServicer_to_server, ExportServicer(), NAME)]


async def run(settings: ExportSettings) -> None:
    """Serves until TERM or INT."""
    stop = shutdown_event()
    telemetry.configure("export-service", settings.otlp_endpoint)
    async with running_server(settings, servicers()):
        await stop.wait()
    telemetry.shutdown()
