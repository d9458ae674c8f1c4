"""The ASGI application: the edge that every request passes, the native API, WebSockets, and the pages beside it."""

import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from functools import lru_cache

from gateway.access_log import AccessLog
from gateway.http import (
    HOST_NOT_ALLOWED,
    ASGIMessage,
    Header,
    Receive,
    Request,
    Scope,
    Send,
    request_id,
)
from gateway.native.errors import send_error
from gateway.observing import observed
from gateway.ws.refusal import refuse
from servicekit.errors import Internal, InvalidArgument, TunesmithError

logger = logging.getLogger(__name__)

ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Handler = Callable[[Request, Send], Awaitable[None]]

REQUEST = "tunesmith.request"
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
# Probes call by the address of the machine.
ANY_HOST = ("/healthz",)

SECURITY: dict[bytes, bytes] = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
    b"cache-control": b"no-store",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
}


class Gateway:
    """Gives each request an id, checks its Host, adds security headers, logs it, and hides what fails unexpectedly."""

    def __init__(
        self,
        native: Handler,
        pages: ASGIApp,
        sockets: Handler,
        hosts: tuple[str, ...],
        access_log: AccessLog | None,
    ) -> None:
        self._native = native
        self._pages = pages
        self._sockets = sockets
        self._any_host = "*" in hosts
        self._hosts = {host.lower() for host in (*LOOPBACK, *hosts)}
        self._allowed = lru_cache(maxsize=256)(self._is_allowed)
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            raise RuntimeError(f"{scope['type']} is not served")
        if scope["type"] == "websocket":
            # The server logs a WebSocket's address with its query, which may carry secrets.
            scope["query_string"] = b""
            await receive()  # that it wants to connect
        headers = dict(scope["headers"])
        request = Request(scope, receive, headers, request_id(headers.get(b"x-request-id")))
        answer = _Answer(send, request)
        started = time.perf_counter()
        try:
            with observed(request):
                await self._guarded(request, answer)
        finally:
            if self._access_log is not None:
                self._access_log.add(request, time.perf_counter() - started)

    async def _guarded(self, request: Request, answer: "_Answer") -> None:
        try:
            await self._route(request, answer)
        except Exception:
            error_id = secrets.token_hex(8)
            logger.exception("%s %s failed (error id %s)", request.method, request.path, error_id)
            if request.status:
                raise
            await self._fail(request, answer, Internal(f"internal error; the gateway's log has it under id {error_id}"))

    async def _route(self, request: Request, answer: "_Answer") -> None:
        path: str = request.scope["path"]
        host = request.headers.get(b"host", b"")
        if not self._allowed(host) and path not in ANY_HOST:
            name = host.decode("latin-1")
            message = f"the host {name!r} is not served here; TUNESMITH_ALLOWED_HOSTS names more hosts"
            await self._fail(request, answer, InvalidArgument(message, reason=HOST_NOT_ALLOWED))
        elif request.scope["type"] == "websocket":
            await self._sockets(request, answer)
        elif path.startswith("/v1/"):
            await self._native(request, answer)
        else:
            request.scope[REQUEST] = request
            await self._pages(request.scope, request.receive, answer)

    @staticmethod
    async def _fail(request: Request, answer: "_Answer", error: TunesmithError) -> None:
        if request.scope["type"] == "websocket":
            await refuse(request, answer, error)
        else:
            await send_error(answer, error)

    def _is_allowed(self, host: bytes) -> bool:
        name = host.decode("latin-1").lower()
        port = name.rpartition(":")
        return self._any_host or name in self._hosts or (port[2].isdigit() and port[0] in self._hosts)


_STARTS = ("http.response.start", "websocket.http.response.start", "websocket.accept")


class _Answer:
    """The send of one request; tells it the status and adds the headers that every answer has."""

    __slots__ = ("_request", "_send")

    def __init__(self, send: Send, request: Request) -> None:
        self._send = send
        self._request = request

    async def __call__(self, message: ASGIMessage) -> None:
        if message["type"] in _STARTS:
            self._request.status = message.get("status", 101)
            given: list[Header] = list(message.get("headers", ()))
            names = {name for name, _ in given}
            if message["type"] != "websocket.accept":
                given += [header for header in SECURITY.items() if header[0] not in names]
            given.append((b"x-request-id", self._request.id.encode()))
            message["headers"] = given
        await self._send(message)
