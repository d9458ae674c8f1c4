"""Whether the gateway and every service behind it can work."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.backends import Backends
from servicekit.errors import TunesmithError, from_rpc_error

SERVING = "SERVING"
DEADLINE_SECONDS = 1.0
FRESH_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Report:
    """What each service answered: SERVING, another health status, or why there was no answer."""

    services: Mapping[str, str]

    @property
    def healthy(self) -> bool:
        """Every service serves."""
        return all(status == SERVING for status in self.services.values())


class Health:
    """Asks all services at once, at most once a second however often it is asked itself."""

    def __init__(self, backends: Backends) -> None:
        self._stubs = {name: health_pb2_grpc.HealthStub(channel) for name, channel in backends.channels.items()}
        self._lock = asyncio.Lock()
        self._report = Report({})
        self._asked = float("-inf")

    async def check(self) -> Report:
        """The newest report, not older than FRESH_SECONDS."""
        async with self._lock:
            if time.monotonic() - self._asked >= FRESH_SECONDS:
                answers = await asyncio.gather(*(self._status(stub) for stub in self._stubs.values()))
                self._report = Report(dict(zip(self._stubs, answers, strict=True)))
                self._asked = time.monotonic()
            return self._report

    @staticmethod
    async def _status(stub: Any) -> str:
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_SECONDS)
        except TunesmithError as error:
            return f"{error.code.name}: {error.message}"
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name}: {from_rpc_error(error).message}"
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
