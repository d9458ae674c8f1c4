"""What every surface shares of HTTP: reading a bounded body, sending a whole answer, ids and statuses."""

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

import grpc

from servicekit.errors import DeadlineExceeded, InvalidArgument, TunesmithError
from servicekit.spooling import DATASET_TOO_LARGE, DISK_FULL, STORAGE_EXHAUSTED

Scope = MutableMapping[str, Any]
ASGIMessage = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[ASGIMessage]]
Send = Callable[[ASGIMessage], Awaitable[None]]
Header = tuple[bytes, bytes]

JSON = b"application/json"

BODY_TOO_LARGE = "BODY_TOO_LARGE"
METHOD_NOT_ALLOWED = "METHOD_NOT_ALLOWED"
HOST_NOT_ALLOWED = "HOST_NOT_ALLOWED"
RANGE_NOT_SATISFIABLE = "RANGE_NOT_SATISFIABLE"
CALLER_LEFT = "CALLER_LEFT"

# As google/rpc/code.proto maps codes.
_STATUS_OF_CODE = {
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.UNAUTHENTICATED: 401,
}
_STATUS_OF_REASON = {
    BODY_TOO_LARGE: 413,
    DATASET_TOO_LARGE: 413,
    STORAGE_EXHAUSTED: 413,
    DISK_FULL: 507,
    METHOD_NOT_ALLOWED: 405,
    HOST_NOT_ALLOWED: 421,
    RANGE_NOT_SATISFIABLE: 416,
    CALLER_LEFT: 499,
}
_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


@dataclass(slots=True)
class Request:
    """One HTTP request: headers in lower case, the last one winning, and the id that the answer and the log carry.

    status is that of the answer, 0 before it has begun; route is the template that the path matched.
    """

    scope: Scope
    receive: Receive
    headers: dict[bytes, bytes]
    id: str
    status: int = 0
    route: str = ""

    @property
    def method(self) -> str:
        """GET, POST and so on; a WebSocket is opened with GET."""
        return str(self.scope.get("method", "GET"))

    @property
    def path(self) -> str:
        """The path as it was sent, percent-encoded."""
        raw: bytes = self.scope["raw_path"]
        return raw.decode("ascii", errors="replace")

    def header(self, name: bytes) -> str:
        """A header's text, empty when it was not sent."""
        return self.headers.get(name, b"").decode("latin-1")


def request_id(given: bytes | None) -> str:
    """The caller's own id when it is a plain word, else a new one."""
    return given.decode() if given and _ID.fullmatch(given) else secrets.token_hex(8)


def http_status(error: TunesmithError) -> int:
    """The HTTP status of an error."""
    return _STATUS_OF_REASON.get(error.reason) or _STATUS_OF_CODE.get(error.code, 500)


async def disconnected(receive: Receive) -> None:
    """Returns when the client has left; only after the body was read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def read_body(request: Request, limit: int, timeout: float) -> bytes:
    """The whole body. Raises InvalidArgument for more than limit bytes, DeadlineExceeded when it comes too slowly."""
    announced = request.headers.get(b"content-length", b"0")
    if announced.isdigit() and int(announced) > limit:
        raise _too_large(limit)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout):
            async for chunk in _chunks(request):
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                chunks.append(chunk)
    except TimeoutError:
        raise DeadlineExceeded(f"the request's body did not arrive within {timeout:g} seconds") from None
    return b"".join(chunks)


async def receive_chunks(request: Request, timeout: float) -> AsyncIterator[bytes]:
    """The body as it comes, no faster than it is taken. Raises DeadlineExceeded when nothing comes for timeout."""
    chunks = _chunks(request)
    while True:
        try:
            async with asyncio.timeout(timeout):
                chunk = await anext(chunks, None)
        except TimeoutError:
            raise DeadlineExceeded(f"nothing of the request's body came within {timeout:g} seconds") from None
        if chunk is None:
            return
        yield chunk


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise InvalidArgument("the request ended before its body", reason="BODY_INCOMPLETE")
        more = message.get("more_body", False)
        yield message.get("body", b"")


def _too_large(limit: int) -> InvalidArgument:
    return InvalidArgument(f"the request's body is larger than {limit} bytes", reason=BODY_TOO_LARGE)


async def respond(
    send: Send, status: int, body: bytes, content_type: bytes = JSON, headers: Iterable[Header] = ()
) -> None:
    """Sends a whole answer."""
    start = [(b"content-type", content_type), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": body})
