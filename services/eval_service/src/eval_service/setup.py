"""Wiring of the evaluation service."""

from eval_service.servicer import EvalServicer
from eval_service.settings import EvalSettings
from servicekit import telemetry
from servicekit.grpc_server import Servicer, running_server
from servicekit.runtime import shutdown_event
from tunesmith.eval.v1 import eval_service_pb2, eval_service_pb2_grpc

NAME = eval_service_pb2.DESCRIPTOR.services_by_name["EvalService"].full_name


def servicers() -> list[Servicer]:
    """What the server serves."""
    return [(eval_service_pb2_grpc.add_EvalServiceServicer_to_server, EvalServicer(), NAME)]


async def run(settings: EvalSettings) -> None:
    """Serves until TERM or INT."""
    stop = shutdown_event()
    telemetry.configure("eval-service", settings.otlp_endpoint)
    async with running_server(settings, servicers()):
        await stop.wait()
    telemetry.shutdown()
