"""The evaluation and export services as processes: start, health, reflection, an answer, an orderly end."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from servicekit.grpc_client import open_channel
from tunesmith.eval.v1 import eval_service_pb2, eval_service_pb2_grpc
from tunesmith.export.v1 import export_service_pb2, export_service_pb2_grpc

SECONDS = 20


@asynccontextmanager
async def started(module: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """The running process of a service and the free port that it took."""
    environment = {**os.environ, "TUNESMITH_PORT": "0"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, stderr=asyncio.subprocess.PIPE, env=environment
    )
    try:
        yield process, await asyncio.wait_for(_port(process), SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def _port(process: asyncio.subprocess.Process) -> int:
    assert process.stderr is not None
    async for line in process.stderr:
        if found := re.search(rb"serving on 127\.0\.0\.1:(\d+)", line):
            return int(found[1])
    raise AssertionError("the service ended before it served")


async def list_scores(target: str) -> int:
    async with open_channel(target) as channel:
        stub = eval_service_pb2_grpc.EvalServiceStub(channel)
        return len((await stub.ListScores(eval_service_pb2.ListScoresRequest())).scores)


async def list_formats(target: str) -> int:
    async with open_channel(target) as channel:
        stub = export_service_pb2_grpc.ExportServiceStub(channel)
        return len((await stub.ListFormats(export_service_pb2.ListFormatsRequest())).formats)


@pytest.mark.parametrize(
    ("module", "name", "describe"),
    [
        ("eval_service", "tunesmith.eval.v1.EvalService", list_scores),
        ("export_service", "tunesmith.export.v1.ExportService", list_formats),
    ],
)
async def test_service_process(module: str, name: str, describe: object) -> None:
    assert callable(describe)
    async with started(module) as (process, port):
        target = f"127.0.0.1:{port}"
        async with open_channel(target) as channel:
            health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name))
            assert health.status == health_pb2.HealthCheckResponse.SERVING
            assert name in await _reflected(channel)
        assert await describe(target) > 0
        process.terminate()
        assert await asyncio.wait_for(process.wait(), SECONDS) == 0


async def _reflected(channel: object) -> set[str]:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    answers = [answer async for answer in stub.ServerReflectionInfo(iter([request]))]
    return {service.name for service in answers[0].list_services_response.service}
