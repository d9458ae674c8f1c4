"""Server-streaming RPCs as server-sent events (WHATWG HTML, section 9.2) or as JSON lines.

An event's id is the message's cursor, so that Last-Event-ID goes on where the connection broke. The end of the stream
is the event "end"; an error is the event "error" with the document of an unary call's. A connection that just ends is
to be opened again.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import Any, Protocol

import grpc
import orjson
from google.protobuf.message import Message

from gateway.http import Request, Send, disconnected
from gateway.native.errors import document, send_error
from gateway.native.methods import Method
from servicekit.errors import TunesmithError, Unavailable, from_rpc_error

# An error usually comes at once; an answer that takes longer starts with 200.
FIRST_ANSWER_SECONDS = 0.5
RETRY_MILLISECONDS = 1000
_LINES = ("application/x-ndjson", "application/jsonl", "application/json")


class Framing(Protocol):
    """How a stream is written."""

    content_type: bytes
    opening: bytes
    keepalive: bytes
    end: bytes

    def message(self, value: Any) -> bytes:
        """One message."""

    def error(self, error: TunesmithError) -> bytes:
        """An error, the last thing of a stream."""

    def closing(self) -> bytes:
        """The gateway is going; come back."""


class Events:
    """Server-sent events."""

    content_type = b"text/event-stream; charset=utf-8"
    opening = b"retry: %d\n\n" % RETRY_MILLISECONDS
    keepalive = b": keep-alive\n\n"
    end = b"event: end\ndata: {}\n\n"

    def message(self, value: Any) -> bytes:
        """One event, with the message's cursor as its id."""
        cursor = value.get("cursor")
        data = orjson.dumps(value)
        return b"id: %s\ndata: %s\n\n" % (cursor.encode(), data) if cursor else b"data: %s\n\n" % data

    def error(self, error: TunesmithError) -> bytes:
        """The event "error"."""
        return b"event: error\ndata: %s\n\n" % orjson.dumps(document(error))

    def closing(self) -> bytes:
        """A comment and when to come back, spread so that not all readers come at once."""
        retry = random.randint(RETRY_MILLISECONDS, 3 * RETRY_MILLISECONDS)
        return b"retry: %d\n: the gateway restarts; connect again with Last-Event-ID\n\n" % retry


class Lines:
    """One JSON document on each line."""

    content_type = b"application/x-ndjson"
    opening = keepalive = end = b""

    def message(self, value: Any) -> bytes:
        """One line."""
        return orjson.dumps(value) + b"\n"

    def error(self, error: TunesmithError) -> bytes:
        """A line whose only member is "error"."""
        return self.message(document(error))

    def closing(self) -> bytes:
        """An error that asks to come back."""
        return self.error(Unavailable("the gateway restarts; ask again from the last cursor", reason="RESTARTING"))


def framing(accept: str) -> Framing:
    """Lines when they are asked for and events are not, else events."""
    if "text/event-stream" not in accept and any(kind in accept for kind in _LINES):
        return Lines()
    return Events()


class Streams:
    """Serves streams until they end, the client leaves, or closing is set."""

    def __init__(self, closing: asyncio.Event, keepalive_seconds: float) -> None:
        self._closing = closing
        self._keepalive_seconds = keepalive_seconds

    async def serve(
        self, request: Request, send: Send, method: Method, message: Message, metadata: tuple[tuple[str, str], ...]
    ) -> None:
        """Answers with a stream; the RPC is cancelled when it is left early."""
        last_seen = request.header(b"last-event-id")
        if method.resumable and last_seen:
            message.cursor = last_seen  # type: ignore[attr-defined]
        call = method.call(message, metadata=metadata)
        written_as = framing(request.header(b"accept"))
        await self.relay(request, send, call, written_as, encode=method.encode, resumable=method.resumable)

    async def relay(
        self,
        request: Request,
        send: Send,
        call: Any,
        written_as: Framing,
        *,
        encode: Callable[[Any], Any] = lambda value: value,
        resumable: bool = False,
        refuse: Callable[[Send, TunesmithError], Awaitable[None]] = send_error,
    ) -> None:
        """Answers with the messages of an RPC that was begun; refuse answers with an error that comes before them."""
        left = asyncio.ensure_future(disconnected(request.receive))
        closing = asyncio.ensure_future(self._closing.wait())
        # What cannot be resumed may end by itself while the gateway drains.
        ends = (left, closing) if resumable else (left,)
        writer = _Writer(send, written_as, refuse)
        try:
            async for value in self._messages(aiter(call), writer, ends):
                await writer.write(writer.framing.message(encode(value)))
            if not left.done():
                await writer.close(writer.framing.closing() if any(end.done() for end in ends) else writer.framing.end)
        except TunesmithError as error:
            await writer.fail(error)
        except grpc.aio.AioRpcError as error:
            await writer.fail(from_rpc_error(error))
        finally:
            call.cancel()
            await _cancelled(left, closing)

    async def _messages(
        self, source: AsyncIterator[Any], writer: "_Writer", ends: Collection[asyncio.Future[Any]]
    ) -> AsyncIterator[Any]:
        """Messages until the source or one of ends is done; signs of life are written in between."""
        wait = FIRST_ANSWER_SECONDS
        answer = asyncio.ensure_future(_next(source))
        try:
            while True:
                await asyncio.wait((answer, *ends), timeout=wait, return_when=asyncio.FIRST_COMPLETED)
                wait = self._keepalive_seconds
                if any(end.done() for end in ends):
                    return
                if not answer.done():
                    await writer.write(writer.framing.keepalive if writer.started else b"")
                    continue
                value = answer.result()
                if value is None:
                    return
                answer = asyncio.ensure_future(_next(source))
                yield value
        finally:
            await _cancelled(answer)


class _Writer:
    def __init__(self, send: Send, framing: Framing, refuse: Callable[[Send, TunesmithError], Awaitable[None]]) -> None:
        self._send = send
        self._refuse = refuse
        self.framing = framing
        self.started = False

    async def write(self, chunk: bytes, more: bool = True) -> None:
        if not self.started:
            self.started = True
            headers = [(b"content-type", self.framing.content_type), (b"x-accel-buffering", b"no")]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
            chunk = self.framing.opening + chunk
        await self._send({"type": "http.response.body", "body": chunk, "more_body": more})

    async def close(self, chunk: bytes) -> None:
        await self.write(chunk, more=False)

    async def fail(self, error: TunesmithError) -> None:
        if self.started:
            await self.close(self.framing.error(error))
        else:
            await self._refuse(self._send, error)


async def _cancelled(*futures: asyncio.Future[Any]) -> None:
    for future in futures:
        future.cancel()
    await asyncio.gather(*futures, return_exceptions=True)


async def _next(source: AsyncIterator[Any]) -> Any:
    return await anext(source, None)
