"""Wiring of the gateway."""

import asyncio
import logging
import math
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.middleware.cors import CORSMiddleware

from gateway.access_log import AccessLog
from gateway.app import ASGIApp, Gateway
from gateway.backends import Backends, connect
from gateway.finetuning import describe as finetuning
from gateway.finetuning.routes import finetuning_routes
from gateway.guide import describe as guide
from gateway.guide.spool import Spool
from gateway.health import Health
from gateway.llm_finetuning import describe as llm_finetuning
from gateway.llm_finetuning.routes import llm_finetuning_routes
from gateway.native import download_docs, openapi
from gateway.native.api import NativeApi
from gateway.native.docs import docs_routes
from gateway.native.downloads import Downloads
from gateway.native.methods import build_router
from gateway.native.streams import Streams
from gateway.openai import describe as openai
from gateway.openai.routes import openai_routes
from gateway.pages import build_pages
from gateway.settings import GatewaySettings
from gateway.training import describe as training
from gateway.training.routes import training_routes
from gateway.ws.sockets import Sockets
from servicekit import telemetry
from servicekit.runtime import shutdown_event
from servicekit.settings import is_loopback

logger = logging.getLogger(__name__)

# What a client sends over a WebSocket are pings.
LARGEST_MESSAGE_BYTES = 16 * 1024
CORS_HEADERS = ("authorization", "content-type", "x-token", "x-request-id", "last-event-id", "idempotency-key")


def build_app(
    settings: GatewaySettings, backends: Backends, closing: asyncio.Event, access_log: AccessLog | None = None
) -> ASGIApp:
    """The application; closing ends its streams."""
    streams, downloads = Streams(closing, settings.keepalive_seconds), Downloads(backends, settings.request_seconds)
    native = NativeApi(build_router(backends), streams, downloads, settings)
    spool = Spool(settings)
    spool.prepare()
    surfaces = (
        *finetuning_routes(backends, settings),
        training_routes(backends, settings, spool),
        llm_finetuning_routes(backends, settings, spool),
        openai_routes(backends, settings, streams),
    )
    pages = build_pages(Health(backends), [*surfaces, *docs_routes(describe)])
    sockets = Sockets(backends, settings, closing)
    gateway = Gateway(native, pages, sockets, (settings.host, *settings.allowed_hosts), access_log)
    if not settings.cors_origins:
        return gateway
    return CORSMiddleware(
        gateway,
        allow_origins=settings.cors_origins,
        allow_methods=("GET", "POST", "PUT", "PATCH", "DELETE"),
        allow_headers=CORS_HEADERS,
        expose_headers=("x-request-id",),
    )


def describe() -> dict[str, Any]:
    """The OpenAPI document of everything that is served."""
    surfaces = (finetuning, training, llm_finetuning, openai)
    files = download_docs.paths()
    paths = files | {path: operations for surface in surfaces for path, operations in surface.paths().items()}
    schemas = {name: schema for surface in (*surfaces, guide) for name, schema in surface.schemas().items()}
    return openapi.build(paths, schemas)


def listen(settings: GatewaySettings) -> socket.socket:
    """A socket at the settings' address. Raises OSError that names it."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        raise OSError(f"cannot listen on {settings.host}:{settings.port}: {error}") from error


class Server(uvicorn.Server):
    """uvicorn, which leaves signals to the process that it runs in."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures nothing."""
        yield


def build_server(settings: GatewaySettings, app: ASGIApp) -> Server:
    """The HTTP server of an application."""
    # In detail, the server would log the headers of WebSockets, and tokens with them.
    logging.getLogger("uvicorn.error").setLevel(logging.INFO)
    return Server(
        uvicorn.Config(
            app,
            http="httptools",
            ws="websockets-sansio",
            ws_max_size=LARGEST_MESSAGE_BYTES,
            ws_per_message_deflate=False,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=settings.max_connections,
            timeout_graceful_shutdown=math.ceil(settings.drain_seconds),
        )
    )


async def run(settings: GatewaySettings) -> None:
    """Serves until TERM or INT, then ends streams with a hint to come back and lets running requests finish."""
    stop = shutdown_event()
    if not (is_loopback(settings.host) or settings.allowed_hosts):
        logger.warning("only loopback names and %s are answered; TUNESMITH_ALLOWED_HOSTS names more", settings.host)
    closing = asyncio.Event()
    telemetry.configure("gateway", settings.otlp_endpoint)
    backends = connect(settings)
    access_log = AccessLog(sys.stderr) if settings.access_log else None
    server = build_server(settings, build_app(settings, backends, closing, access_log))
    with listen(settings) as listener:
        logger.info("serving on http://%s:%s", settings.host, listener.getsockname()[1])
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        closing.set()
        server.should_exit = True
        await serving
    await backends.close()
    if access_log is not None:
        access_log.flush()
    telemetry.shutdown()
