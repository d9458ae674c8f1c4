"""Asks processes whether they serve."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

SECONDS = 2.0
WRITE_ERROR = "write error"


def grpc_serving(port: int) -> Callable[[], Awaitable[bool]]:
    """Whether the gRPC server on a loopback port reports SERVING."""

    async def ask() -> bool:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_retries", 0)]) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            try:
                answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
            except grpc.aio.AioRpcError:
                return False
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    return ask


def http_serving(url: str) -> Callable[[], Awaitable[bool]]:
    """Whether an address answers 200."""

    async def ask() -> bool:
        async with httpx.AsyncClient(timeout=SECONDS, trust_env=False) as client:
            try:
                return (await client.get(url)).status_code == httpx.codes.OK
            except httpx.TransportError:
                return False

    return ask


def nats_fault(url: str) -> Callable[[], Awaitable[str]]:
    """Why a NATS server must be started again, empty while nothing is wrong; url is that of its health.

    After a write that failed, as on a full disk, a stream takes nothing more until the server starts anew.
    """

    async def ask() -> str:
        async with httpx.AsyncClient(timeout=SECONDS, trust_env=False) as client:
            try:
                document = (await client.get(url)).json()
            except (httpx.TransportError, ValueError):
                return ""
        reason = str(document.get("error", ""))
        return f"cannot store messages ({reason})" if WRITE_ERROR in reason else ""

    return ask


def nats_serving(port: int) -> Callable[[], Awaitable[bool]]:
    """Whether a NATS server with JetStream greets on a loopback port."""

    async def ask() -> bool:
        try:
            async with asyncio.timeout(SECONDS):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    greeting = await reader.readline()
                finally:
                    writer.close()
                    await writer.wait_closed()
        except (OSError, TimeoutError):
            return False
        words = greeting.split(b" ", 1)
        return words[0] == b"INFO" and bool(json.loads(words[1]).get("jetstream"))

    return ask
