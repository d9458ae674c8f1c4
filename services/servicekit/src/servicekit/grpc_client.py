"""gRPC channels whose calls carry a token and a deadline and raise the errors of servicekit.errors."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from typing import Any

import grpc
from grpc.aio import ClientCallDetails, Metadata

from servicekit import grpc_telemetry
from servicekit.errors import MAX_METADATA_BYTES, from_rpc_error

DEFAULT_DEADLINE_SECONDS = 30.0
MAX_MESSAGE_BYTES = 32 * 1024 * 1024

RETRY_POLICY = """{
  "loadBalancingConfig": [{"round_robin": {}}],
  "methodConfig": [{
    "name": [{}],
    "retryPolicy": {
      "maxAttempts": 4,
      "initialBackoff": "0.1s",
      "maxBackoff": "1s",
      "backoffMultiplier": 2,
      "retryableStatusCodes": ["UNAVAILABLE"]
    }
  }]
}"""


def bearer(token: str) -> Metadata:
    """Metadata that carries a token, for calls on behalf of somebody else than the channel's own identity."""
    return Metadata(("authorization", f"Bearer {token}"))


class _CallSettings:
    """Adds the channel's token, unless the call has one, and a deadline, unless the call has one."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def apply(self, details: ClientCallDetails, deadline: float | None) -> ClientCallDetails:
        metadata = details.metadata if details.metadata is not None else Metadata()
        if self._token and metadata.get("authorization") is None:
            metadata.add("authorization", f"Bearer {self._token}")
        return ClientCallDetails(
            details.method,
            details.timeout if details.timeout is not None else deadline,
            metadata,
            details.credentials,
            details.wait_for_ready,
        )


class _UnaryInterceptor(_CallSettings, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: ClientCallDetails, request: Any
    ) -> Any:
        try:
            call = await continuation(self.apply(client_call_details, DEFAULT_DEADLINE_SECONDS), request)
            return await call
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error


class _StreamInterceptor(_CallSettings, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self, continuation: Callable[..., Any], client_call_details: ClientCallDetails, request: Any
    ) -> Any:
        call = await continuation(self.apply(client_call_details, None), request)
        return self._restored(call)

    @staticmethod
    async def _restored(call: Any) -> AsyncIterator[Any]:
        try:
            async for response in call:
                yield response
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()


class _Outgoing:
    """The messages of an upload, and the error with which whoever makes them gave up."""

    def __init__(self, requests: AsyncIterable[Any] | Iterable[Any]) -> None:
        self._requests = requests
        self.error: Exception | None = None

    async def messages(self) -> AsyncIterator[Any]:
        try:
            if isinstance(self._requests, AsyncIterable):
                async for request in self._requests:
                    yield request
            else:
                for request in self._requests:
                    yield request
        except Exception as error:
            self.error = error
            raise


class _UploadInterceptor(_CallSettings, grpc.aio.StreamUnaryClientInterceptor):
    """For calls whose messages come from an iterator. They take as long as they take: no deadline of our own.

    An error of the iterator cuts the call off and is raised as it is.
    """

    async def intercept_stream_unary(
        self, continuation: Callable[..., Any], client_call_details: ClientCallDetails, request_iterator: Any
    ) -> Any:
        outgoing = _Outgoing(request_iterator)
        try:
            call = await continuation(self.apply(client_call_details, None), outgoing.messages())
            await call
            return call
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        except asyncio.CancelledError:
            if outgoing.error is not None:
                raise outgoing.error from None
            raise


def open_channel(target: str, token: str | None = None) -> grpc.aio.Channel:
    """A channel to one or several addresses of a service ("ipv4:127.0.0.1:1,127.0.0.1:2"), used in turn.

    Calls that find no server are tried again a few times; the error then is servicekit.errors.Unavailable.
    """
    return grpc.aio.insecure_channel(
        target,
        options=[
            ("grpc.service_config", RETRY_POLICY),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_metadata_size", MAX_METADATA_BYTES),
            ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 5_000),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1_000),
            ("grpc.use_local_subchannel_pool", 1),
        ],
        interceptors=[
            _UnaryInterceptor(token),
            _StreamInterceptor(token),
            _UploadInterceptor(token),
            *grpc_telemetry.client_interceptors(),
        ],
    )
