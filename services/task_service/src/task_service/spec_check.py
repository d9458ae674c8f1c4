"""Asks the trainer service whether work can start, before the task is accepted."""

import logging
from typing import Protocol

import grpc

from servicekit.errors import DeadlineExceeded, Problem, Unavailable
from tunesmith.task.v1 import spec_pb2
from tunesmith.trainer.v1 import trainer_service_pb2, trainer_service_pb2_grpc

Metadata = grpc.aio.Metadata

logger = logging.getLogger(__name__)


class SpecChecker(Protocol):
    """Finds everything that is wrong with a spec."""

    async def problems(self, spec: spec_pb2.TaskSpec, identity: Metadata | None) -> list[Problem]:
        """Problems by field path; Unimplemented when the work cannot be done at all.

        identity is that of the caller: of somebody else's dataset nothing is told.
        """
        ...


class TrainerSpecChecker:
    """Asks a trainer. When none can be reached the spec passes, because the worker checks it again."""

    def __init__(self, channel: grpc.aio.Channel, seconds: float) -> None:
        self._stub = trainer_service_pb2_grpc.TrainerServiceStub(channel)
        self._seconds = seconds

    async def problems(self, spec: spec_pb2.TaskSpec, identity: Metadata | None) -> list[Problem]:
        request = trainer_service_pb2.CheckSpecRequest(spec=spec)
        try:
            response = await self._stub.CheckSpec(request, timeout=self._seconds, metadata=identity)
        except (Unavailable, DeadlineExceeded) as error:
            logger.warning("the trainer service could not check a task, its worker will: %s", error.message)
            return []
        return [Problem(f"spec.{problem.field}", problem.message) for problem in response.problems]
