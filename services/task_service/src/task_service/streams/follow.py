"""Reading one subject of a stream in order, in portions, with a limit on waiting and on memory."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from typing import TypeVar

from servicekit.bus import EventBus, Message
from servicekit.errors import Unavailable

T = TypeVar("T")

AHEAD = 64
STALL_SECONDS = 5.0
RETRY_SECONDS = 0.5


class Follower:
    """Reads ahead of its user by a few messages at most; a user who is slow slows the reading down."""

    def __init__(self, bus: EventBus, stream: str, subject: str, after: int) -> None:
        self._bus = bus
        self._source = (stream, subject, after)
        self._queue: asyncio.Queue[Message | Exception] = asyncio.Queue(AHEAD)
        self._pump = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            async with aclosing(self._bus.replay(*self._source)) as messages:
                async for message in messages:
                    await self._queue.put(message)
        except Exception as error:  # noqa: BLE001 - handed to whoever reads
            await self._queue.put(error)

    async def portion(self, seconds: float) -> list[Message]:
        """The next messages, as many as are there; none when none comes within some seconds."""
        messages: list[Message] = []
        try:
            async with asyncio.timeout(seconds):
                messages.append(_message(await self._queue.get()))
        except TimeoutError:
            return messages
        while not self._queue.empty():
            messages.append(_message(self._queue.get_nowait()))
        return messages

    async def close(self) -> None:
        """Stops reading and frees the consumer on the server."""
        self._pump.cancel()
        with suppress(asyncio.CancelledError):
            await self._pump


async def when_available(call: Callable[[], Awaitable[T]]) -> T:
    """The result of a call to the broker, tried again for as long as the broker is away."""
    while True:
        try:
            return await call()
        except Unavailable:
            await asyncio.sleep(RETRY_SECONDS)


def reaches(sequences: tuple[int, int], sequence: int) -> bool:
    """Whether a stream with these first and last sequences has everything after one; False for one of a lost stream."""
    first, last = sequences
    return first <= sequence + 1 <= last + 1


def _message(item: Message | Exception) -> Message:
    if isinstance(item, Exception):
        raise item
    return item


@asynccontextmanager
async def following(bus: EventBus, stream: str, subject: str, after: int) -> AsyncIterator[Follower]:
    """A follower of the messages on subject after a sequence; closed at the end of the block."""
    follower = Follower(bus, stream, subject, after)
    try:
        yield follower
    finally:
        await follower.close()


async def stored_messages(
    bus: EventBus, stream: str, subject: str, after: int, last: int
) -> AsyncGenerator[Message, None]:
    """Messages on subject with after < sequence <= last, where last is one that was there when this was called.

    Ends early when the rest was removed from the stream meanwhile.
    """
    if last <= after:
        return
    position = after
    async with following(bus, stream, subject, after) as follower:
        while position < last:
            messages = await follower.portion(STALL_SECONDS)
            if not messages and not await _more(bus, stream, subject, position):
                return
            for message in messages:
                if message.sequence > last:
                    return
                position = message.sequence
                yield message


async def _more(bus: EventBus, stream: str, subject: str, position: int) -> bool:
    newest = await bus.last_message(stream, subject)
    return newest is not None and newest[0] > position
