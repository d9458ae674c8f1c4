"""The native API: every RPC with a google.api.http annotation, answered straight from the descriptors, and files."""

import secrets
from typing import Any
from urllib.parse import parse_qsl

import grpc
import orjson
from google.protobuf.message import Message

from gateway.calls import call_metadata
from gateway.http import METHOD_NOT_ALLOWED, Request, Send, read_body, respond
from gateway.native.decode import Decoder
from gateway.native.downloads import Downloads
from gateway.native.errors import send_error
from gateway.native.methods import Method
from gateway.native.streams import Streams
from gateway.native.templates import Router
from gateway.native.uploads import upload
from gateway.settings import GatewaySettings
from servicekit.errors import InvalidArgument, NotFound, Problem, TunesmithError, Unimplemented, from_rpc_error

BODY_NOT_JSON = "BODY_NOT_JSON"
MOST_PARAMETERS = 1000


class NativeApi:
    """Answers requests below /v1."""

    def __init__(
        self, router: Router[Method], streams: Streams, downloads: Downloads, settings: GatewaySettings
    ) -> None:
        self._router = router
        self._streams = streams
        self._downloads = downloads
        self._seconds = settings.request_seconds
        self._max_body = settings.max_body_bytes

    async def __call__(self, request: Request, send: Send) -> None:
        try:
            methods, segments = self._router.find(request.path)
            method = methods.get(request.method)
            if method is None:
                if methods or not await self._downloads.serve(request, send):
                    await self._no_method(request, send, methods)
                return
            request.route = method.binding.path
            message = await self._message(request, method, segments)
            metadata = call_metadata(request)
            if method.streaming:
                await self._streams.serve(request, send, method, message, metadata)
                return
            if method.part is not None:
                response = await upload(request, method, message, metadata, self._seconds)
            else:
                response = await method.call(message, timeout=self._seconds, metadata=metadata)
            await respond(send, 200, orjson.dumps(method.encode(response)))
        except TunesmithError as error:
            await send_error(send, error)
        except grpc.aio.AioRpcError as error:
            await send_error(send, from_rpc_error(error))

    async def _no_method(self, request: Request, send: Send, methods: dict[str, Method]) -> None:
        if not methods:
            raise NotFound(f"there is nothing at {request.path}; /docs shows what there is", reason="ROUTE_NOT_FOUND")
        allowed = ", ".join(sorted(methods))
        error = Unimplemented(f"{request.path} takes {allowed}, not {request.method}", reason=METHOD_NOT_ALLOWED)
        await send_error(send, error, ((b"allow", allowed.encode()),))

    async def _message(self, request: Request, method: Method, segments: list[str]) -> Message:
        """The request message. Raises InvalidArgument with every problem of path, query and body."""
        message = method.request()
        decoder = Decoder()
        body = method.binding.body
        if body:
            document = _json(await read_body(request, self._max_body, self._seconds))
            if body == "*":
                decoder.message(message, document)
            else:
                decoder.message(getattr(message, body), document, body)
        for variable in method.binding.template.variables:
            decoder.variable(message, variable.path, "/".join(segments[variable.start : variable.end]))
        query = request.scope["query_string"]
        if query:
            taken = [body, *(variable.path for variable in method.binding.template.variables)]
            pairs = _pairs(query)
            if body == "*":
                decoder.problems += [Problem(name, "unknown parameter; put it into the body") for name, _ in pairs]
            else:
                decoder.query(message, pairs, taken)
        if decoder.problems:
            raise InvalidArgument(problems=decoder.problems)
        if method.repeatable and not message.request_id:  # type: ignore[attr-defined]
            message.request_id = secrets.token_hex(16)  # type: ignore[attr-defined]
        return message


def _json(body: bytes) -> Any:
    if not body.strip():
        return {}
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidArgument(f"the body is not JSON: {error}", reason=BODY_NOT_JSON) from None


def _pairs(query: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MOST_PARAMETERS)
    except ValueError as error:
        raise InvalidArgument(f"the query cannot be read: {error}", reason="QUERY_MALFORMED") from None
