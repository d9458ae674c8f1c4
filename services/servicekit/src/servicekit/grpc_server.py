"""The gRPC server of every service: health, reflection, identity, validation, errors, draining."""

import asyncio
import logging
import math
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import grpc
import protovalidate
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from servicekit import grpc_telemetry
from servicekit.errors import (
    STATUS_DETAILS_KEY,
    Internal,
    InvalidArgument,
    Problem,
    TunesmithError,
    Unauthenticated,
    Unimplemented,
    status_details,
    wire_message,
)
from servicekit.identity import ANONYMOUS, TokenVerifier, expired, set_current_principal
from servicekit.settings import ServiceSettings

logger = logging.getLogger(__name__)

HEALTH_SERVICE = "grpc.health.v1.Health"
MAX_MESSAGE_BYTES = 32 * 1024 * 1024
# The messages of a call that is cut off end like those of one that is whole; its cancellation comes right after.
CUT_OFF_SECONDS = 0.05
FINISH_SECONDS = 1.0

if TYPE_CHECKING:
    Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]]

Method = TypeVar("Method", bound=Callable[..., Any])

# A servicer with the function that adds it to a server and its full name, for health and reflection.
Servicer = tuple[Callable[[Any, grpc.aio.Server], None], Any, str]
# Rules that say of a text or a choice that there must be one.
_WANTED = ("string.min_len", "enum.not_in")


def field_path(violation: protovalidate.Violation) -> str:
    """The dotted path of the field that a violation is about, for example spec.finetune.training.seed."""
    parts = []
    path = violation.proto.field
    for element in path.elements if path is not None else ():
        part = element.field_name
        if element.subscript is not None:
            part += f"[{element.subscript.value}]"
        parts.append(part)
    return ".".join(parts)


def violations(request: Message) -> list[Problem]:
    """Every breach of the rules that a request's proto states."""
    found = protovalidate.collect_violations(request)
    return [Problem(field_path(violation), _said(violation, request)) for violation in found]


def _said(violation: protovalidate.Violation, request: Message) -> str:
    """What is wrong; of what is left out that it must be given, whichever rule says so."""
    if violation.proto.rule_id == "required":
        choices = _choices(violation, request)
        return f"must be given as one of {', '.join(choices)}" if choices else "must be given"
    is_left_out = violation.proto.rule_id in _WANTED and not violation.field_value
    return "must be given" if is_left_out else str(violation.proto.message)


def _choices(violation: protovalidate.Violation, request: Message) -> list[str]:
    """The fields of which one must be there; empty when the violation is not about a oneof."""
    path = violation.proto.field
    *above, last = [element.field_name for element in path.elements] if path is not None else [""]
    kind = request.DESCRIPTOR
    for name in above:
        field = kind.fields_by_name.get(name)
        if field is None or field.message_type is None:
            return []
        kind = field.message_type
    oneof = kind.oneofs_by_name.get(last)
    return [field.name for field in oneof.fields] if oneof is not None else []


def validates_itself(method: Method) -> Method:
    """Marks a servicer's method that reports violations() itself, together with what else is wrong."""
    method.validates_itself = True  # type: ignore[attr-defined]
    return method


def validate(behavior: Callable[..., Any], request: Message) -> None:
    """Checks a request before its method runs. Raises InvalidArgument with every problem."""
    if not getattr(behavior, "validates_itself", False) and (problems := violations(request)):
        raise InvalidArgument(problems=problems)


class ServiceInterceptor(grpc.aio.ServerInterceptor):
    """Identifies the caller, validates the request and turns errors into statuses, around every method."""

    def __init__(self, verifier: TokenVerifier | None) -> None:
        self._verifier = verifier

    async def intercept_service(
        self,
        continuation: "Continuation",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(f"/{HEALTH_SERVICE}/"):
            return handler
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(
                self._unary(method, handler.unary_unary), handler.request_deserializer, handler.response_serializer
            )
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(
                self._stream(method, handler.unary_stream), handler.request_deserializer, handler.response_serializer
            )
        if handler.stream_unary:
            return grpc.stream_unary_rpc_method_handler(
                self._upload(method, handler.stream_unary), handler.request_deserializer, handler.response_serializer
            )
        return self._authenticated_only(handler)

    def _authenticate(self, context: "grpc.aio.ServicerContext[Any, Any]") -> float:
        """Sets the caller; when the caller's token expires, in seconds since 1970."""
        if self._verifier is None:
            set_current_principal(ANONYMOUS)
            return math.inf
        if token := token_of(context):
            principal, expires = self._verifier.verified(token)
            set_current_principal(principal)
            return expires
        raise Unauthenticated("the call carries no bearer token", reason="TOKEN_MISSING")

    def _unary(self, method: str, behavior: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        async def call(request: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> Any:
            try:
                self._authenticate(context)
                validate(behavior, request)
                return await behavior(request, context)
            except grpc.aio.AbortError:
                raise
            except Exception as error:  # noqa: BLE001  the one place where defects become statuses
                await abort(context, as_status(method, error))

        return call

    def _stream(self, method: str, behavior: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        async def call(request: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> AsyncIterator[Any]:
            try:
                deadline = _deadline(self._authenticate(context))
                validate(behavior, request)
                responses = behavior(request, context)
                while (response := await _next(responses, deadline)) is not None:
                    yield response
            except grpc.aio.AbortError:
                raise
            except Exception as error:  # noqa: BLE001  the one place where defects become statuses
                await abort(context, as_status(method, error))

        return call

    def _upload(self, method: str, behavior: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        async def validated(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
            async for request in requests:
                validate(behavior, request)
                yield request
            await asyncio.sleep(CUT_OFF_SECONDS)

        async def call(requests: AsyncIterator[Any], context: "grpc.aio.ServicerContext[Any, Any]") -> Any:
            try:
                self._authenticate(context)
                return await behavior(validated(requests), context)
            except grpc.aio.AbortError:
                raise
            except Exception as error:  # noqa: BLE001  the one place where defects become statuses
                status = as_status(method, error)
                await _let_finish(requests)
                await abort(context, status)

        return call

    def _authenticated_only(self, handler: "grpc.RpcMethodHandler[Any, Any]") -> "grpc.RpcMethodHandler[Any, Any]":
        """For methods that stream both ways; of ours none does, of the library's only reflection."""
        behavior: Callable[[Any, Any], AsyncIterator[Any]] = handler.stream_stream  # type: ignore[assignment]

        async def call(requests: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> AsyncIterator[Any]:
            try:
                self._authenticate(context)
            except TunesmithError as error:
                await abort(context, error)
            async for response in behavior(requests, context):
                yield response

        return grpc.stream_stream_rpc_method_handler(call, handler.request_deserializer, handler.response_serializer)


def token_of(context: "grpc.aio.ServicerContext[Any, Any]") -> str:
    """The bearer token of a call, empty without one. Its scheme may be in any case (RFC 7235, section 2.1)."""
    for key, value in context.invocation_metadata() or ():
        if key == "authorization" and isinstance(value, str):
            scheme, _, token = value.partition(" ")
            if scheme.lower() == "bearer":
                return token.strip()
    return ""


def _deadline(expires: float) -> float | None:
    """The event loop's time at a time in seconds since 1970; a clock that is set later does not move it."""
    return None if math.isinf(expires) else asyncio.get_running_loop().time() + expires - time.time()


async def _next(responses: AsyncIterator[Any], deadline: float | None) -> Any:
    """A stream's next response, None at its end. Raises Unauthenticated at the deadline."""
    try:
        async with asyncio.timeout_at(deadline) as limit:
            return await anext(responses, None)
    except TimeoutError:
        if limit.expired():
            raise expired() from None
        raise


async def _let_finish(requests: AsyncIterator[Any]) -> None:
    """Drops what a caller still sends, for a while: one that is cut short while it sends loses the status."""
    with suppress(Exception):
        async with asyncio.timeout(FINISH_SECONDS):
            async for _ in requests:
                pass


def as_status(method: str, error: Exception) -> TunesmithError:
    """The error that a caller sees; that of a defect has an id under which the log has its trace."""
    if isinstance(error, TunesmithError):
        return error
    if isinstance(error, NotImplementedError):
        return Unimplemented(f"{method.rpartition('/')[2]} is not available in this version")
    error_id = secrets.token_hex(8)
    logger.exception("%s failed (error id %s)", method, error_id)
    return Internal(f"internal error; the log of the service has it under id {error_id}", metadata={"id": error_id})


async def abort(context: "grpc.aio.ServicerContext[Any, Any]", error: TunesmithError) -> NoReturn:
    """Ends a call with the status of an error."""
    await context.abort(error.code, wire_message(error), ((STATUS_DETAILS_KEY, status_details(error)),))


class Server:
    """A running server. It reports NOT_SERVING until serving() is called and again while it drains."""

    def __init__(self, server: grpc.aio.Server, health: HealthServicer, names: Sequence[str], port: int) -> None:
        self._server = server
        self._health = health
        self._names = names
        self.port = port

    async def serving(self, ready: bool = True) -> None:
        """Sets what health checks are told."""
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *self._names):
            await self._health.set(name, status)

    async def drain(self, grace: float) -> None:
        """Refuses new calls and waits up to grace seconds for those that run."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace)


def load_verifier(settings: ServiceSettings) -> TokenVerifier | None:
    """The verifier of callers' tokens; None when the deployment has no authentication."""
    return TokenVerifier(settings.public_key_file.read_bytes()) if settings.public_key_file else None


@asynccontextmanager
async def running_server(
    settings: ServiceSettings,
    servicers: Sequence[Servicer],
    *,
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    ready: bool = True,
) -> AsyncIterator[Server]:
    """Serves until the block ends, then drains. Raises OSError when the address is taken."""
    server = grpc.aio.server(
        interceptors=[
            *grpc_telemetry.server_interceptors(),
            *interceptors,
            ServiceInterceptor(load_verifier(settings)),
        ],
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.so_reuseport", 0),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 5000),
        ],
    )
    for add, servicer, _ in servicers:
        add(servicer, server)
    names = [name for _, _, name in servicers]
    health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    reflection.enable_server_reflection([*names, HEALTH_SERVICE, reflection.SERVICE_NAME], server)
    try:
        port = server.add_insecure_port(f"{settings.host}:{settings.port}")
    except RuntimeError as error:
        raise OSError(f"cannot listen on {settings.host}:{settings.port}: {error}") from error
    await server.start()
    running = Server(server, health, names, port)
    await running.serving(ready)
    logger.info("serving on %s:%s", settings.host, port)
    try:
        yield running
    finally:
        await running.drain(settings.drain_seconds)
