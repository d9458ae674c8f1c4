"""One open WebSocket: events go out, pings come in, heartbeats in between, until one side has enough."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import grpc
import orjson

from gateway.http import Request, Send
from gateway.ws.messages import HEARTBEAT, PONG, Board, Message, failure
from servicekit.errors import Internal, TunesmithError, Unauthenticated, Unavailable, from_rpc_error
from tunesmith.task.v1 import event_pb2

logger = logging.getLogger(__name__)

NORMAL, GOING_AWAY, POLICY, DEFECT, TRY_AGAIN = 1000, 1001, 1008, 1011, 1013
EXPIRED = 4401  # the services end a stream when its caller's token expires
_CODES = {Unavailable: TRY_AGAIN, Internal: DEFECT, Unauthenticated: EXPIRED}
RETRIES = 5
RETRY_SECONDS = 0.5

# Events after a cursor, each with the cursor after it.
Events = Callable[[str], AsyncGenerator[tuple[event_pb2.TaskEvent, str]]]


class SlowReader(Exception):
    """The client did not take a message in time."""


class Connection:
    """Serves one client. At most a few messages wait for it: events are read no faster than it takes them."""

    def __init__(self, request: Request, send: Send, *, heartbeat_seconds: float, send_seconds: float) -> None:
        self._request = request
        self._send = send
        self._heartbeat_seconds = heartbeat_seconds
        self._send_seconds = send_seconds

    async def serve(self, events: Events, closing: asyncio.Event) -> None:
        """Returns when the events end, the client leaves or is too slow, or closing is set."""
        parts = (self._answer_pings(), self._events(events), self._beat(), _after(closing))
        running = [asyncio.ensure_future(part) for part in parts]
        try:
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            code = next(future for future in running if future in done).result()
            if code is not None:
                await self._send({"type": "websocket.close", "code": code})
        except (SlowReader, OSError) as error:  # the server tells with an OSError that the client has left
            logger.debug("a WebSocket ended: %r", error)
        finally:
            for future in running:
                future.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _events(self, events: Events) -> int:
        """Tells what happens; the code to close with. A service that is away for a moment is asked again."""
        board, cursor, failures = Board(), "", 0
        while True:
            try:
                async with aclosing(events(cursor)) as source:
                    async for event, position in source:
                        cursor, failures = position, 0
                        for message in board.messages(event):
                            await self._tell(message)
                return NORMAL
            except (TunesmithError, grpc.aio.AioRpcError) as problem:
                error = problem if isinstance(problem, TunesmithError) else from_rpc_error(problem)
                failures += 1
                if not isinstance(error, Unavailable) or failures > RETRIES:
                    await self._tell(failure(error.message))
                    return _CODES.get(type(error), POLICY)
                await asyncio.sleep(RETRY_SECONDS * failures)

    async def _answer_pings(self) -> int | None:
        """Answers a ping in its own form, as a word or as JSON; everything else is left unheard."""
        while True:
            received = await self._request.receive()
            if received["type"] == "websocket.disconnect":
                return None
            text = received.get("text") or ""
            if text.strip() == "ping":
                await self._send_text("pong")
            elif _is_ping(text):
                await self._tell(PONG)

    async def _beat(self) -> int:
        while True:
            await asyncio.sleep(self._heartbeat_seconds)
            await self._tell(HEARTBEAT)

    async def _tell(self, message: Message) -> None:
        await self._send_text(orjson.dumps(message).decode())

    async def _send_text(self, text: str) -> None:
        try:
            async with asyncio.timeout(self._send_seconds):
                await self._send({"type": "websocket.send", "text": text})
        except TimeoutError:
            raise SlowReader from None


async def _after(closing: asyncio.Event) -> int:
    await closing.wait()
    return GOING_AWAY


def _is_ping(text: str) -> bool:
    try:
        document: Any = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and document.get("type") == "ping"
