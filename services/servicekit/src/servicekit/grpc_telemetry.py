"""Spans and durations of gRPC calls, by the names of the current semantic conventions.

Both functions return no interceptors while telemetry is off, so that calls cost nothing then.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from time import perf_counter
from typing import Any

import grpc
from grpc.aio import ClientCallDetails, Metadata
from opentelemetry import trace
from opentelemetry.context import Context, attach
from opentelemetry.metrics import Histogram
from opentelemetry.trace import SpanKind, Status, StatusCode

from servicekit import telemetry

UNOBSERVED = ("/grpc.health.v1.Health/", "/grpc.reflection.")
# Of the codes that a server answers with, those that mean trouble of its own.
SERVER_ERRORS = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
CLIENT_ERRORS = {code.name for code in grpc.StatusCode} - {"OK"}
TRACE_KEYS = ("traceparent", "tracestate")
_NAMES: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}


def server_interceptors() -> list[grpc.aio.ServerInterceptor]:
    """Interceptors to put before all others of a server."""
    return [_ServerInterceptor()] if telemetry.enabled() else []


def client_interceptors() -> list[grpc.aio.ClientInterceptor]:
    """Interceptors to put after all others of a channel."""
    return [_UnaryClient(), _StreamClient(), _UploadClient()] if telemetry.enabled() else []


class _Call:
    """What is observed of one call: its span and its duration."""

    def __init__(self, method: str, kind: SpanKind, histogram: Histogram, parent: Context | None = None) -> None:
        self._histogram = histogram
        self._errors = SERVER_ERRORS if kind is SpanKind.SERVER else CLIENT_ERRORS
        self._attributes = {"rpc.system.name": "grpc", "rpc.method": method}
        self._span = telemetry.tracer().start_span(method, parent, kind, self._attributes)
        self.context = trace.set_span_in_context(self._span, parent)
        self._started = perf_counter()

    def end(self, code: str) -> None:
        """Records how the call ended."""
        seconds = perf_counter() - self._started
        outcome = {"rpc.response.status_code": code}
        if code in self._errors:
            outcome["error.type"] = code
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.set_attributes(outcome)
        self._histogram.record(seconds, self._attributes | outcome, self.context)
        self._span.end()


class _ServerInterceptor(grpc.aio.ServerInterceptor):
    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        details, handler = handler_call_details, await continuation(handler_call_details)
        method = details.method
        if handler is None or method.startswith(UNOBSERVED):
            return handler
        parent = telemetry.extract(
            {key: str(value) for key, value in details.invocation_metadata or () if key in TRACE_KEYS}
        )
        if handler.response_streaming:
            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            behavior = _observed_stream(method[1:], parent, handler.stream_stream or handler.unary_stream)
        else:
            make = (
                grpc.stream_unary_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_unary_rpc_method_handler
            )
            behavior = _observed_unary(method[1:], parent, handler.stream_unary or handler.unary_unary)
        return make(behavior, handler.request_deserializer, handler.response_serializer)


def _served(method: str, parent: Context | None) -> _Call:
    """Each call runs in a task of its own, whose context ends with it, so nothing has to be detached."""
    observed = _Call(method, SpanKind.SERVER, telemetry.rpc_server_duration, parent)
    attach(observed.context)
    return observed


def _observed_unary(method: str, parent: Context | None, behavior: Any) -> Any:
    async def call(request: Any, context: Any) -> Any:
        observed, code = _served(method, parent), "CANCELLED"
        try:
            response = await behavior(request, context)
            code = _code_of(context, "OK")
            return response
        except Exception:
            code = _code_of(context, "UNKNOWN")
            raise
        finally:
            observed.end(code)

    return call


def _observed_stream(method: str, parent: Context | None, behavior: Any) -> Any:
    async def call(request: Any, context: Any) -> AsyncIterator[Any]:
        observed, code = _served(method, parent), "CANCELLED"
        try:
            async for response in behavior(request, context):
                yield response
            code = _code_of(context, "OK")
        except Exception:
            code = _code_of(context, "UNKNOWN")
            raise
        finally:
            observed.end(code)

    return call


def _code_of(context: Any, otherwise: str) -> str:
    code = context.code()
    if isinstance(code, grpc.StatusCode):
        return code.name
    return _NAMES.get(code, otherwise) if code else otherwise


def _name(details: ClientCallDetails) -> str:
    return details.method.decode() if isinstance(details.method, bytes) else details.method


def _outgoing(details: ClientCallDetails) -> tuple[_Call, ClientCallDetails]:
    observed = _Call(_name(details)[1:], SpanKind.CLIENT, telemetry.rpc_client_duration)
    headers: dict[str, str] = {}
    telemetry.inject(headers, observed.context)
    metadata = Metadata(*(details.metadata or ()), *headers.items())
    wait = details.wait_for_ready
    return observed, ClientCallDetails(details.method, details.timeout, metadata, details.credentials, wait)


async def _observed_answer(continuation: Callable[..., Any], details: ClientCallDetails, request: Any) -> Any:
    """The call of one message, or of a stream of them, once it was answered."""
    observed, details = _outgoing(details)
    code = "CANCELLED"
    try:
        call = await continuation(details, request)
        await call
        code = "OK"
        return call
    except grpc.aio.AioRpcError as error:
        code = error.code().name
        raise
    finally:
        observed.end(code)


class _UnaryClient(grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: ClientCallDetails, request: Any
    ) -> Any:
        if _name(client_call_details).startswith(UNOBSERVED):
            return await continuation(client_call_details, request)
        return await _observed_answer(continuation, client_call_details, request)


class _UploadClient(grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(
        self, continuation: Callable[..., Any], client_call_details: ClientCallDetails, request_iterator: Any
    ) -> Any:
        return await _observed_answer(continuation, client_call_details, request_iterator)


class _StreamClient(grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self, continuation: Callable[..., Any], client_call_details: ClientCallDetails, request: Any
    ) -> Any:
        if _name(client_call_details).startswith(UNOBSERVED):
            return await continuation(client_call_details, request)
        observed, details = _outgoing(client_call_details)
        return self._observed(observed, await continuation(details, request))

    @staticmethod
    async def _observed(observed: _Call, call: Any) -> AsyncIterator[Any]:
        code = "CANCELLED"
        try:
            async for response in call:
                yield response
            code = "OK"
        except grpc.aio.AioRpcError as error:
            code = error.code().name
            raise
        finally:
            observed.end(code)
