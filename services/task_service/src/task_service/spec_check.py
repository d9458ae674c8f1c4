"""Asks the service that will do some work whether it can start, before the task is accepted."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
from google.protobuf.message import Message

from servicekit.errors import DeadlineExceeded, Problem, Unavailable
from tunesmith.eval.v1 import eval_service_pb2, eval_service_pb2_grpc
from tunesmith.export.v1 import export_service_pb2, export_service_pb2_grpc
from tunesmith.task.v1 import spec_pb2, task_service_pb2
from tunesmith.trainer.v1 import trainer_service_pb2, trainer_service_pb2_grpc

Metadata = grpc.aio.Metadata
Source = task_service_pb2.TaskSource

logger = logging.getLogger(__name__)


class SpecChecker(Protocol):
    """Finds everything that is wrong with a spec."""

    async def problems(
        self, spec: spec_pb2.TaskSpec, source: Source | None, identity: Metadata | None
    ) -> list[Problem]:
        """Problems by field path; Unimplemented when the work cannot be done at all.

        source is what the task that an evaluation or export starts from has produced. identity is that of the caller:
        of somebody else's dataset nothing is told.
        """
        ...


@dataclass(frozen=True, slots=True)
class RemoteSpecChecker:
    """Asks a service. When it cannot be reached the spec passes, because the worker checks it again.

    call is a stub's CheckSpec, request makes its request; name is that of the service, for the log.
    """

    name: str
    call: Callable[..., Awaitable[Any]]
    request: Callable[[spec_pb2.TaskSpec, Source | None], Message]
    seconds: float

    async def problems(
        self, spec: spec_pb2.TaskSpec, source: Source | None, identity: Metadata | None
    ) -> list[Problem]:
        try:
            response = await self.call(self.request(spec, source), timeout=self.seconds, metadata=identity)
        except (Unavailable, DeadlineExceeded) as error:
            logger.warning("the %s could not check a task, its worker will: %s", self.name, error.message)
            return []
        return [Problem(f"spec.{problem.field}", problem.message) for problem in response.problems]


@dataclass(frozen=True, slots=True)
class SpecCheckers:
    """Sends each kind of work to the service that does it; a kind without one passes."""

    by_kind: Mapping[str, SpecChecker]

    async def problems(
        self, spec: spec_pb2.TaskSpec, source: Source | None, identity: Metadata | None
    ) -> list[Problem]:
        checker = self.by_kind.get(spec.WhichOneof("work") or "")
        return [] if checker is None else await checker.problems(spec, source, identity)


def trainer_checker(channel: grpc.aio.Channel, seconds: float) -> RemoteSpecChecker:
    """Has trainings checked."""
    stub = trainer_service_pb2_grpc.TrainerServiceStub(channel)
    request = trainer_service_pb2.CheckSpecRequest
    return RemoteSpecChecker("trainer service", stub.CheckSpec, lambda spec, _: request(spec=spec), seconds)


def evaluation_checker(channel: grpc.aio.Channel, seconds: float) -> RemoteSpecChecker:
    """Has evaluations checked."""
    stub = eval_service_pb2_grpc.EvalServiceStub(channel)

    def request(spec: spec_pb2.TaskSpec, source: Source | None) -> Message:
        return eval_service_pb2.CheckSpecRequest(spec=spec.evaluate, source=source)

    return RemoteSpecChecker("evaluation service", stub.CheckSpec, request, seconds)


def export_checker(channel: grpc.aio.Channel, seconds: float) -> RemoteSpecChecker:
    """Has exports checked."""
    stub = export_service_pb2_grpc.ExportServiceStub(channel)

    def request(spec: spec_pb2.TaskSpec, source: Source | None) -> Message:
        return export_service_pb2.CheckSpecRequest(spec=spec.export, source=source)

    return RemoteSpecChecker("export service", stub.CheckSpec, request, seconds)
