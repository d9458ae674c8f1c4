"""The event bus: NATS JetStream with acknowledged publishes, durable consumers and resumable replay."""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Self

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, PubAck, StreamConfig
from nats.js.errors import BadRequestError, NotFoundError

from servicekit import subjects
from servicekit.bus.messages import (
    ACK_TIMEOUT_SECONDS,
    TRANSPORT_ERRORS,
    Message,
    Outgoing,
    heeds_cancellation,
    no_answer,
    quietly,
)
from servicekit.bus.pull_consumer import (
    CLOSE_SECONDS,
    PULL_EXPIRES_SECONDS,
    PullConsumer,
)
from servicekit.errors import Unavailable

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
INACTIVE_THRESHOLD_SECONDS = 60.0
CREDENTIALS = re.compile(r"//[^/@]*@")


class Connection(Client):
    """A connection that outlives flushes which are given up.

    nats-py stops reading, until the server is found dead half a minute later, when the answer to a ping comes after
    whoever waited for it was cancelled or lost patience.
    """

    async def _process_pong(self) -> None:
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()


class EventBus:
    """A connection to NATS with the platform's streams."""

    def __init__(self) -> None:
        self._client = Connection()
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

    @heeds_cancellation
    async def ensure_streams(self, streams: Sequence[StreamConfig] | None = None) -> None:
        """Creates the platform's streams where they are missing."""
        for config in subjects.streams() if streams is None else streams:
            try:
                await self._js.add_stream(config)
            except BadRequestError:
                await self._js.update_stream(config)
            except TRANSPORT_ERRORS as error:
                raise Unavailable(f"stream {config.name} could not be created: {error!r}") from error

    @heeds_cancellation
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

    @heeds_cancellation
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
            name=durable,  # so that the request names the filter, which permissions are about
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
                await quietly(self._js.delete_consumer(stream, name))

    async def subscribe(
        self, subject: str, handler: Callable[[str, bytes], Awaitable[None]]
    ) -> Callable[[], Awaitable[None]]:
        """Calls handler(subject, data) for messages of now, at most once each; returns what ends the subscription."""

        async def deliver(message: Msg) -> None:
            await handler(message.subject, message.data)

        subscription = await self._client.subscribe(subject, cb=deliver)

        async def unsubscribe() -> None:
            await quietly(subscription.unsubscribe())

        return unsubscribe

    @heeds_cancellation
    async def last_message(self, stream: str, subject: str) -> tuple[int, bytes] | None:
        """Sequence and data of the newest message on subject that is still in the stream, None without one."""
        try:
            raw = await self._js.get_last_msg(stream, subject)
        except NotFoundError:
            return None
        except TRANSPORT_ERRORS as error:
            raise no_answer(error) from error
        return int(raw.seq or 0), raw.data or b""

    @heeds_cancellation
    async def message_at(self, stream: str, sequence: int) -> tuple[str, bytes] | None:
        """Subject and data of the message with a sequence, None when it is gone."""
        try:
            raw = await self._js.get_msg(stream, seq=sequence)
        except NotFoundError:
            return None
        except TRANSPORT_ERRORS as error:
            raise no_answer(error) from error
        return str(raw.subject), raw.data or b""

    @heeds_cancellation
    async def delete_message(self, stream: str, sequence: int) -> None:
        """Removes one message; nothing happens when it is gone."""
        try:
            await self._js.delete_msg(stream, sequence)
        except (NotFoundError, BadRequestError):
            return
        except TRANSPORT_ERRORS as error:
            raise no_answer(error) from error

    @heeds_cancellation
    async def purge(self, stream: str, subject: str, *, up_to: int | None = None) -> None:
        """Removes every message on subject, or only those whose sequence is at most up_to."""
        try:
            await self._js.purge_stream(stream, subject=subject, seq=None if up_to is None else up_to + 1)
        except NotFoundError:
            return
        except TRANSPORT_ERRORS as error:
            raise no_answer(error) from error

    @heeds_cancellation
    async def sequences(self, stream: str) -> tuple[int, int]:
        """First sequence still in a stream and last one ever stored; (0, 0) without the stream."""
        try:
            info = await self._js.stream_info(stream)
        except NotFoundError:
            return 0, 0
        except TRANSPORT_ERRORS as error:
            raise no_answer(error) from error
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
