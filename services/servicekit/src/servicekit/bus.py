"""The event bus: NATS JetStream with acknowledged publishes, pull consumers and resumable replay.

Pull requests are kept open (batch, expiry, heartbeat) so that a message reaches its consumer without a round trip,
and are renewed after a reconnect or a lost heartbeat; nothing is buffered beyond one request's batch.
"""

import asyncio
import json
import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, PubAck, StreamConfig
from nats.js.errors import BadRequestError, NotFoundError

from servicekit import subjects, telemetry
from servicekit.errors import Unavailable

logger = logging.getLogger(__name__)

ACK_TIMEOUT_SECONDS = 5.0
CONNECT_SECONDS = 10.0
CLOSE_SECONDS = 2.0
PULL_EXPIRES_SECONDS = 30.0
PULL_HEARTBEAT_SECONDS = 5.0
RETRY_SECONDS = 0.5
INACTIVE_THRESHOLD_SECONDS = 60.0
NANOSECONDS = 1_000_000_000
CREDENTIALS = re.compile(r"//[^/@]*@")
TRANSPORT_ERRORS = (NatsError, asyncio.TimeoutError, OSError)


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
        await _guarded(self._raw.ack())

    async def ack_sync(self) -> None:
        """Acknowledges and waits until the server has taken note."""
        await _guarded(self._raw.ack_sync(timeout=ACK_TIMEOUT_SECONDS))

    async def nak(self, delay: float | None = None) -> None:
        """Gives the message back, to be delivered again after delay seconds."""
        await _guarded(self._raw.nak(delay=delay))

    async def term(self) -> None:
        """Never deliver it again."""
        await _guarded(self._raw.term())

    async def in_progress(self) -> None:
        """Extends the time until it would be delivered again."""
        await _guarded(self._raw.in_progress())


def _no_answer(error: BaseException) -> Unavailable:
    return Unavailable(f"the message broker did not answer: {error!r}")


async def _guarded(operation: Awaitable[Any]) -> None:
    try:
        await operation
    except TRANSPORT_ERRORS as error:
        raise _no_answer(error) from error


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
            await _quietly(subscription.unsubscribe())

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
            _heed_cancellation()
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
                await _quietly(asyncio.wait_for(drained, CLOSE_SECONDS))
            else:
                await _quietly(self._subscription.unsubscribe())
        while not self._queue.empty():
            raw = self._queue.get_nowait()
            if raw is not None and raw.reply and not (raw.headers or {}).get("Status"):
                await _quietly(raw.nak())


def _heed_cancellation() -> None:
    """Before Python 3.12 asyncio.wait_for, which nats-py uses, may swallow a cancellation (CPython issue 86296)."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def _quietly(operation: Awaitable[Any]) -> None:
    try:
        await operation
    except TRANSPORT_ERRORS as error:
        logger.debug("while closing: %r", error)


class EventBus:
    """A connection to NATS with the platform's streams."""

    def __init__(self) -> None:
        self._client = Client()
        self._consumers: set[PullConsumer] = set()
        self._last_error: Exception | None = None
        self._connection = asyncio.Event()
        self._unacknowledged: set[asyncio.Future[PubAck]] = set()
        self._js: JetStreamContext

    @classmethod
    async def connect(
        cls,
        url: str,
        *,
        name: str,
        user: str | None = None,
        password: str | None = None,
        patience: float = CONNECT_SECONDS,
    ) -> Self:
        """Connects, and keeps reconnecting for as long as the bus is open.

        Raises Unavailable when there is no broker within patience seconds, or when it refuses the user.
        """
        bus = cls()
        try:
            async with asyncio.timeout(patience):
                await bus._client.connect(
                    url.split(","),
                    name=name,
                    user=user,
                    password=password,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=0.2,  # type: ignore[arg-type]  # seconds, passed to asyncio.sleep
                    connect_timeout=5,
                    ping_interval=10,
                    error_cb=bus._on_error,
                    disconnected_cb=bus._on_disconnect,
                    reconnected_cb=bus._on_reconnect,
                )
        except TRANSPORT_ERRORS as error:
            await bus._client.close()
            where = CREDENTIALS.sub("//", url)
            raise Unavailable(f"no message broker at {where}: {bus._last_error or error!r}") from error
        bus._connection.set()
        bus._js = bus._client.jetstream(timeout=ACK_TIMEOUT_SECONDS, publish_async_max_pending=10_000)
        return bus

    async def _on_error(self, error: Exception) -> None:
        # What the server says tells more than how the connection ended after it.
        if self._last_error is None or isinstance(error, NatsError):
            self._last_error = error
        logger.warning("message broker: %r", error)

    async def _on_disconnect(self) -> None:
        self._connection.clear()
        for future in self._unacknowledged:
            if not future.done():
                future.set_exception(ConnectionResetError("the connection was lost"))
        if not self._client.is_closed:
            logger.warning("message broker: connection lost, reconnecting")

    async def _on_reconnect(self) -> None:
        logger.info("message broker: connected again")
        self._connection.set()
        for consumer in self._consumers:
            consumer.reset()

    @property
    def connected(self) -> bool:
        """Whether the connection is up right now."""
        return bool(self._client.is_connected)

    async def ensure_streams(self, streams: Sequence[StreamConfig] | None = None) -> None:
        """Creates the platform's streams where they are missing."""
        for config in subjects.streams() if streams is None else streams:
            try:
                await self._js.add_stream(config)
            except BadRequestError:
                await self._js.update_stream(config)
            except TRANSPORT_ERRORS as error:
                raise Unavailable(f"stream {config.name} could not be created: {error!r}") from error

    async def publish(
        self, subject: str, data: bytes, *, message_id: str | None = None, headers: Mapping[str, str] | None = None
    ) -> int:
        """Publishes and waits until the stream has stored the message; its sequence. Unavailable when it did not.

        Waits a few seconds for a connection that is being made again.
        """
        try:
            async with asyncio.timeout(ACK_TIMEOUT_SECONDS):
                await self._connection.wait()
            (ack,) = await self._store([Outgoing(subject, data, message_id, headers)])
        except TRANSPORT_ERRORS as error:
            raise Unavailable(f"the message broker did not store a message on {subject}: {error!r}") from error
        return int(ack.seq)

    async def publish_all(self, messages: Sequence[Outgoing]) -> None:
        """Publishes in order and waits until all are stored. Unavailable when any was not; send all again then."""
        if not self.connected:
            raise Unavailable("the message broker is not connected")
        try:
            await self._store(messages)
        except TRANSPORT_ERRORS as error:
            raise Unavailable(f"the message broker did not store {len(messages)} messages: {error!r}") from error

    async def _store(self, messages: Sequence[Outgoing]) -> list[PubAck]:
        """Publishes and collects the acknowledgements, none of which comes any more once the connection is lost."""
        pending: list[asyncio.Future[PubAck]] = []
        try:
            async with asyncio.timeout(ACK_TIMEOUT_SECONDS + len(messages) / 500):
                for item in messages:
                    future = await self._js.publish_async(item.subject, item.data, headers=item.all_headers())
                    pending.append(future)
                    self._unacknowledged.add(future)
                return await asyncio.gather(*pending)
        finally:
            self._unacknowledged.difference_update(pending)
            for future in pending:
                future.cancel()

    def consumer(
        self,
        stream: str,
        durable: str,
        filter_subject: str,
        *,
        ack_wait: float = 30.0,
        max_deliver: int = -1,
        max_ack_pending: int = 1000,
    ) -> PullConsumer:
        """A durable consumer; it and its stream are created when they are missing."""
        config = ConsumerConfig(
            durable_name=durable,
            filter_subject=filter_subject,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=ack_wait,
            max_deliver=max_deliver,
            max_ack_pending=max_ack_pending,
        )

        async def ensure() -> str:
            try:
                await self._js.add_consumer(stream, config)
            except NotFoundError:
                await self.ensure_streams()
                await self._js.add_consumer(stream, config)
            return durable

        return self._track(PullConsumer(self._client, stream, ensure))

    def _track(self, consumer: PullConsumer) -> PullConsumer:
        self._consumers.add(consumer)
        return consumer

    async def release(self, consumer: PullConsumer) -> None:
        """Closes a consumer of this bus."""
        self._consumers.discard(consumer)
        await consumer.close()

    async def replay(self, stream: str, subject: str, after_sequence: int = 0) -> AsyncGenerator[Message, None]:
        """Every message on subject after a sequence, in order, then new ones as they come; never ends by itself.

        Goes on without loss or repetition over reconnects and restarts of the server.
        """
        last = after_sequence
        expected = 1

        async def ensure() -> str:
            nonlocal expected
            config = ConsumerConfig(
                filter_subject=subject,
                ack_policy=AckPolicy.NONE,
                deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
                opt_start_seq=last + 1,
                inactive_threshold=INACTIVE_THRESHOLD_SECONDS,
                mem_storage=True,
            )
            expected = 1
            info = await self._js.add_consumer(stream, config)
            return str(info.name)

        consumer = self._track(PullConsumer(self._client, stream, ensure))
        try:
            while True:
                for message in await consumer.fetch(256, PULL_EXPIRES_SECONDS):
                    if message.sequence <= last:
                        continue
                    if message.consumer_sequence != expected:
                        await consumer.restart()
                        break
                    expected += 1
                    last = message.sequence
                    yield message
        finally:
            name = consumer.name
            await self.release(consumer)
            if name is not None and self.connected:
                await _quietly(self._js.delete_consumer(stream, name))

    async def subscribe(
        self, subject: str, handler: Callable[[str, bytes], Awaitable[None]]
    ) -> Callable[[], Awaitable[None]]:
        """Calls handler(subject, data) for messages of now, at most once each; returns what ends the subscription."""

        async def deliver(message: Msg) -> None:
            await handler(message.subject, message.data)

        subscription = await self._client.subscribe(subject, cb=deliver)

        async def unsubscribe() -> None:
            await _quietly(subscription.unsubscribe())

        return unsubscribe

    async def last_message(self, stream: str, subject: str) -> tuple[int, bytes] | None:
        """Sequence and data of the newest message on subject that is still in the stream, None without one."""
        try:
            raw = await self._js.get_last_msg(stream, subject)
        except NotFoundError:
            return None
        except TRANSPORT_ERRORS as error:
            raise _no_answer(error) from error
        return int(raw.seq or 0), raw.data or b""

    async def message_at(self, stream: str, sequence: int) -> tuple[str, bytes] | None:
        """Subject and data of the message with a sequence, None when it is gone."""
        try:
            raw = await self._js.get_msg(stream, seq=sequence)
        except NotFoundError:
            return None
        except TRANSPORT_ERRORS as error:
            raise _no_answer(error) from error
        return str(raw.subject), raw.data or b""

    async def delete_message(self, stream: str, sequence: int) -> None:
        """Removes one message; nothing happens when it is gone."""
        try:
            await self._js.delete_msg(stream, sequence)
        except (NotFoundError, BadRequestError):
            return
        except TRANSPORT_ERRORS as error:
            raise _no_answer(error) from error

    async def purge(self, stream: str, subject: str, *, up_to: int | None = None) -> None:
        """Removes every message on subject, or only those whose sequence is at most up_to."""
        try:
            await self._js.purge_stream(stream, subject=subject, seq=None if up_to is None else up_to + 1)
        except NotFoundError:
            return
        except TRANSPORT_ERRORS as error:
            raise _no_answer(error) from error

    async def sequences(self, stream: str) -> tuple[int, int]:
        """First sequence still in a stream and last one ever stored; (0, 0) without the stream."""
        try:
            info = await self._js.stream_info(stream)
        except NotFoundError:
            return 0, 0
        except TRANSPORT_ERRORS as error:
            raise _no_answer(error) from error
        return int(info.state.first_seq), int(info.state.last_seq)

    async def close(self) -> None:
        """Flushes what was published and closes the connection."""
        for consumer in list(self._consumers):
            await self.release(consumer)
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._client.drain()
        except (*TRANSPORT_ERRORS, TimeoutError):
            await self._client.close()
