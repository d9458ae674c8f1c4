"""Reading a stream through one open pull request at a time.

A request (batch, expiry, heartbeat) stays open, so that a message reaches its consumer without a round trip; it is
renewed after a reconnect or a lost heartbeat, and nothing is buffered beyond its batch.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from servicekit.bus.messages import TRANSPORT_ERRORS, Message, heeds_cancellation, quietly

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 2.0
PULL_EXPIRES_SECONDS = 30.0
PULL_HEARTBEAT_SECONDS = 5.0
RETRY_SECONDS = 0.5
NANOSECONDS = 1_000_000_000


class PullConsumer:
    """Reads a consumer through one open pull request at a time."""

    def __init__(self, client: Client, stream: str, ensure: Callable[[], Awaitable[str]]) -> None:
        self._client = client
        self._stream = stream
        self._ensure = ensure
        self._queue: asyncio.Queue[Msg | None] = asyncio.Queue()
        self._subscription: Subscription | None = None
        self._inbox = client.new_inbox()
        self._name: str | None = None
        self._outstanding = 0

    async def _on_message(self, message: Msg) -> None:
        self._queue.put_nowait(message)

    @property
    def name(self) -> str | None:
        """Name of the consumer on the server, None while it is not known to exist."""
        return self._name

    def reset(self) -> None:
        """Forgets the open request, for after a reconnect."""
        self._queue.put_nowait(None)

    async def restart(self) -> None:
        """Drops what was received and asks for the consumer anew."""
        subscription, self._subscription = self._subscription, None
        self._inbox, self._queue = self._client.new_inbox(), asyncio.Queue()
        self._outstanding, self._name = 0, None
        if subscription is not None:
            await quietly(subscription.unsubscribe())

    async def fetch(self, batch: int = 1, timeout: float = PULL_EXPIRES_SECONDS) -> list[Message]:
        """Waits up to timeout seconds for a message and returns it with those that came along, at most batch."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        messages: list[Message] = []
        while len(messages) < batch:
            if messages and self._queue.empty():
                break
            try:
                raw = await self._next(batch - len(messages), deadline - loop.time())
            except TimeoutError:
                break
            except TRANSPORT_ERRORS as error:
                logger.warning("reading stream %s: %r; trying again", self._stream, error)
                self._name, self._outstanding = None, 0
                await asyncio.sleep(min(RETRY_SECONDS, max(0.0, deadline - loop.time())))
                continue
            if raw is not None:
                messages.append(Message(raw))
        return messages

    async def _next(self, batch: int, remaining: float) -> Msg | None:
        """The next message, or None when a status or reset came instead. TimeoutError after remaining seconds."""
        if remaining <= 0 and self._queue.empty():
            raise TimeoutError
        if self._outstanding <= 0 and self._queue.empty():
            await self._request(batch, remaining)
        patience = min(max(remaining, 0.001), 2 * PULL_HEARTBEAT_SECONDS)
        try:
            async with asyncio.timeout(patience):
                raw = await self._queue.get()
        except TimeoutError:
            if remaining > patience:
                self._outstanding, self._name = 0, None
                return None
            raise
        if raw is None:
            self._outstanding = 0
            return None
        status = (raw.headers or {}).get("Status")
        if status is None:
            self._outstanding -= 1
            return raw
        if status != "100":
            self._outstanding = 0
        if status in ("503", "409"):
            self._name = None
            await asyncio.sleep(0.05)
        return None

    @heeds_cancellation
    async def _request(self, batch: int, remaining: float) -> None:
        if self._subscription is None:
            self._subscription = await self._client.subscribe(self._inbox, cb=self._on_message)
        if self._name is None:
            self._name = await self._ensure()
        expires = max(0.01, min(remaining, PULL_EXPIRES_SECONDS))
        request: dict[str, Any] = {"batch": batch, "expires": int(expires * NANOSECONDS)}
        if expires > 2 * PULL_HEARTBEAT_SECONDS:
            request["idle_heartbeat"] = int(PULL_HEARTBEAT_SECONDS * NANOSECONDS)
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._name}"
        await self._client.publish(subject, json.dumps(request).encode(), reply=self._inbox)
        self._outstanding = batch

    async def close(self) -> None:
        """Stops reading and gives back what was received, or is on its way, but was not handed out."""
        if self._subscription is not None:
            if self._client.is_connected:
                drained = self._subscription.drain()  # type: ignore[no-untyped-call]
                await quietly(asyncio.wait_for(drained, CLOSE_SECONDS))
            else:
                await quietly(self._subscription.unsubscribe())
        while not self._queue.empty():
            raw = self._queue.get_nowait()
            if raw is not None and raw.reply and not (raw.headers or {}).get("Status"):
                await quietly(raw.nak())
