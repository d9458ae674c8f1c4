"""A service with workers as a process of its own, as it is deployed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.ports import accepts, free_port
from tests.support.process import ServerProcess
from tests.support.waiting import eventually

Running = tuple[ServerProcess, int]


@contextmanager
def service_process(module: str, root: Path, **settings: str) -> Iterator[Running]:
    """`python -m module` with directories below root, once it listens, and its port; settings without their prefix."""
    port = free_port()
    given = {
        "port": str(port),
        "object_store_url": f"file://{root}/objects",
        "allowed_roots": str(root / "data"),
        "output_root": str(root / "outputs"),
        "work_dir": str(root / "work"),
        "drain_seconds": "1",
        **settings,
    }
    environment = {f"TUNESMITH_{name.upper()}": value for name, value in given.items()}
    command = [sys.executable, "-m", module]
    process = ServerProcess(command, root / "service.log", ready=lambda: accepts(port), environment=environment)
    with process:
        yield process, port


async def until_healthy(channel: grpc.aio.Channel) -> None:
    """Waits until the server says that it serves."""

    async def healthy() -> bool:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    await eventually(healthy)


def is_idle(process: ServerProcess) -> bool:
    """Whether a service has neither children nor the machine-learning libraries in its memory."""
    found = psutil.Process(process.pid)
    return not found.children() and not any("libtorch" in entry.path for entry in found.memory_maps())
