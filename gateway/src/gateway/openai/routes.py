"""The routes below /openai/v1 and what they do."""

import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import Receive, Scope, Send

from gateway.backends import Backends
from gateway.guide.surface import verify
from gateway.http import METHOD_NOT_ALLOWED
from gateway.native.streams import Streams
from gateway.openai import errors
from gateway.openai.call import Call
from gateway.openai.completions import Chunks, Completion
from gateway.openai.models import Models
from gateway.openai.requests import fill, is_streamed
from gateway.settings import GatewaySettings
from servicekit.errors import (
    Internal,
    InvalidArgument,
    NotFound,
    Problem,
    TunesmithError,
    Unimplemented,
    from_rpc_error,
)
from servicekit.identity import TokenVerifier
from tunesmith.eval.v1 import eval_service_pb2, eval_service_pb2_grpc

logger = logging.getLogger(__name__)

PREFIX = "/openai/v1"

Action = Callable[[Call], Awaitable[Any]]


def openai_routes(backends: Backends, settings: GatewaySettings, streams: Streams) -> BaseRoute:
    """The surface below its prefix."""
    chat = Chat(backends, streams)
    verifier = TokenVerifier(settings.public_key_file.read_bytes()) if settings.public_key_file else None
    table: list[tuple[str, str, Action]] = [
        ("GET", "/models", chat.models),
        ("GET", "/models/{name:path}", chat.model),
        ("POST", "/chat/completions", chat.complete),
    ]
    routes = [Route(path, _endpoint(path, action, verifier, settings), methods=[verb]) for verb, path, action in table]
    return Mount(PREFIX, Starlette(routes=routes, exception_handlers={HTTPException: _http_error}))


class Chat:
    """What the routes do."""

    def __init__(self, backends: Backends, streams: Streams) -> None:
        self._models = Models(backends)
        self._generate = eval_service_pb2_grpc.EvalServiceStub(backends.channels["eval"]).Generate
        self._streams = streams

    async def models(self, call: Call) -> Any:
        """GET models."""
        return await self._models.listed(call)

    async def model(self, call: Call) -> Any:
        """GET models/NAME."""
        return await self._models.get(call, call.path("name"))

    async def complete(self, call: Call) -> Any:
        """POST chat/completions."""
        document = await call.document()
        name = document.get("model")
        if not isinstance(name, str):
            raise InvalidArgument(problems=[Problem("model", "name a model; GET /openai/v1/models lists them")])
        streamed, with_usage = is_streamed(document)
        request = await self._models.find(call, name)
        fill(request, document)
        completion = Completion(name)
        if not streamed:
            return completion.whole(await call.in_time(self._answer(call, request)))
        framing = Chunks(completion, with_usage=with_usage)
        return Streamed(self._streams, call, self._generate(request, metadata=call.metadata), framing)

    async def _answer(
        self, call: Call, request: eval_service_pb2.GenerateRequest
    ) -> list[eval_service_pb2.GenerateResponse]:
        stream = self._generate(request, metadata=call.metadata)
        try:
            return [response async for response in stream]
        finally:
            stream.cancel()


class Streamed(Response):
    """An answer in chunks; the RPC ends when the caller leaves."""

    def __init__(self, streams: Streams, call: Call, rpc: Any, framing: Chunks) -> None:
        self.background = None
        self._streams, self._call, self._rpc, self._framing = streams, call, rpc, framing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the answer until it ends or the caller leaves."""
        await self._streams.relay(self._call.http, send, self._rpc, self._framing, refuse=errors.send_failed)


def _endpoint(
    path: str, action: Action, verifier: TokenVerifier | None, settings: GatewaySettings
) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        try:
            call = Call(request, settings)
            call.http.route = PREFIX + path
            # The services check tokens too; here a bad one is told before anything is read.
            if verifier is not None:
                verify(verifier, call.http.header(b"authorization"))
            result = await action(call)
            return result if isinstance(result, Response) else errors.answer(result)
        except TunesmithError as error:
            return errors.failed(error)
        except grpc.aio.AioRpcError as error:
            return errors.failed(from_rpc_error(error))
        except Exception:
            error_id = secrets.token_hex(8)
            logger.exception("%s %s failed (error id %s)", request.method, path, error_id)
            return errors.failed(Internal(f"internal error; the gateway's log has it under id {error_id}"))

    return endpoint


async def _http_error(request: Request, error: Exception) -> Response:
    """Errors of the routing itself."""
    assert isinstance(error, HTTPException)
    path = request.scope["path"]
    nothing = f"there is nothing at {path}; /docs shows what there is"
    problem: TunesmithError = NotFound(nothing, reason=errors.ROUTE_NOT_FOUND)
    if error.status_code == 405:
        problem = Unimplemented(f"{path} does not take {request.method}", reason=METHOD_NOT_ALLOWED)
    response = errors.failed(problem)
    response.headers.update(error.headers or {})  # Allow, of a method that is not taken
    return response
