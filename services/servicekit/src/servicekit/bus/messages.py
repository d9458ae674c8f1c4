"""Messages to and from the broker, and what it means when it does not answer."""

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from servicekit import telemetry
from servicekit.errors import Unavailable

logger = logging.getLogger(__name__)

ACK_TIMEOUT_SECONDS = 5.0
TRANSPORT_ERRORS = (NatsError, asyncio.TimeoutError, OSError)

P = ParamSpec("P")
T = TypeVar("T")


def heeds_cancellation(call: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Raises the CancelledError that a call to nats-py lost.

    Before Python 3.12 asyncio.wait_for, which nats-py uses, may swallow a cancellation (CPython issue 86296); whoever
    cancelled a task that goes on would wait for its end for ever.
    """

    @functools.wraps(call)
    async def heeding(*args: P.args, **kwargs: P.kwargs) -> T:
        task = asyncio.current_task()
        before = task.cancelling() if task is not None else 0
        result = await call(*args, **kwargs)
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError
        return result

    return heeding


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to publish."""

    subject: str
    data: bytes
    message_id: str | None = None
    headers: Mapping[str, str] | None = None

    def all_headers(self) -> dict[str, Any] | None:
        headers: dict[str, Any] = dict(self.headers or {})
        if self.message_id:
            headers["Nats-Msg-Id"] = self.message_id
        if "traceparent" not in headers:
            telemetry.inject(headers)
        return headers or None


class Message:
    """A message read from a stream."""

    def __init__(self, raw: Msg) -> None:
        self._raw = raw
        metadata = raw.metadata
        self.subject = raw.subject
        self.data = raw.data
        self.headers: dict[str, str] = dict(raw.headers or {})
        self.sequence: int = metadata.sequence.stream
        self.consumer_sequence: int = metadata.sequence.consumer
        self.num_delivered: int = metadata.num_delivered
        self.timestamp = metadata.timestamp

    async def ack(self) -> None:
        """Acknowledges without waiting for the server."""
        await guarded(self._raw.ack())

    @heeds_cancellation
    async def ack_sync(self) -> None:
        """Acknowledges and waits until the server has taken note."""
        await guarded(self._raw.ack_sync(timeout=ACK_TIMEOUT_SECONDS))

    async def nak(self, delay: float | None = None) -> None:
        """Gives the message back, to be delivered again after delay seconds."""
        await guarded(self._raw.nak(delay=delay))

    async def term(self) -> None:
        """Never deliver it again."""
        await guarded(self._raw.term())

    async def in_progress(self) -> None:
        """Extends the time until it would be delivered again."""
        await guarded(self._raw.in_progress())


def no_answer(error: BaseException) -> Unavailable:
    return Unavailable(f"the message broker did not answer: {error!r}")


async def guarded(operation: Awaitable[Any]) -> None:
    try:
        await operation
    except TRANSPORT_ERRORS as error:
        raise no_answer(error) from error


async def quietly(operation: Awaitable[Any]) -> None:
    try:
        await operation
    except TRANSPORT_ERRORS as error:
        logger.debug("while closing: %r", error)
