"""The services behind the gateway: which process serves which of them, and a channel to each process."""

from collections.abc import Mapping
from dataclasses import dataclass

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from gateway.settings import GatewaySettings
from servicekit.grpc_client import open_channel
from tunesmith.eval.v1 import eval_service_pb2
from tunesmith.export.v1 import export_service_pb2
from tunesmith.task.v1 import (
    dataset_service_pb2,
    parameter_service_pb2,
    quota_service_pb2,
    task_service_pb2,
    template_service_pb2,
)
from tunesmith.trainer.v1 import trainer_service_pb2

_FILES = {
    "task": (task_service_pb2, dataset_service_pb2, template_service_pb2, quota_service_pb2, parameter_service_pb2),
    "trainer": (trainer_service_pb2,),
    "eval": (eval_service_pb2,),
    "export": (export_service_pb2,),
}

# Services by the name of the process that serves them.
SERVICES: Mapping[str, tuple[ServiceDescriptor, ...]] = {
    name: tuple(service for file in files for service in file.DESCRIPTOR.services_by_name.values())
    for name, files in _FILES.items()
}


@dataclass(frozen=True, slots=True)
class Backends:
    """A channel for each name in SERVICES."""

    channels: Mapping[str, grpc.aio.Channel]

    async def close(self) -> None:
        """Closes the channels."""
        for channel in self.channels.values():
            await channel.close()


def connect(settings: GatewaySettings) -> Backends:
    """Opens the channels; they connect by themselves when they are used, and again after a loss."""
    targets = {
        "task": settings.task_target,
        "trainer": settings.trainer_target,
        "eval": settings.eval_target,
        "export": settings.export_target,
    }
    return Backends({name: open_channel(target) for name, target in targets.items()})
