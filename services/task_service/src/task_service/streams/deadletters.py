"""What becomes of queue messages that no worker could work on.

The broker tells of them in advisories, which the stream ADVISORIES keeps until they are dealt with here. A message
that was delivered too often stays in the queue for ever, so it is copied to DEADLETTERS and deleted, and its task is
told. A message that a worker refused for good has left the queue by itself; the worker has kept it if it was broken.
"""

import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Self

from google.protobuf.message import DecodeError

from servicekit import subjects
from servicekit.bus import EventBus, Message
from servicekit.errors import TunesmithError
from tunesmith.events.v1.fact_pb2 import WorkItem

logger = logging.getLogger(__name__)

DURABLE = "dead-letters"
FILTER = "$JS.EVENT.ADVISORY.CONSUMER.>"
MAX_DELIVERIES = "io.nats.jetstream.advisory.v1.max_deliver"
BATCH = 64
RETRY_SECONDS = 2.0

# Told of the task, the attempt that its message was to start, and what happened to the message.
GiveUp = Callable[[str, int, str], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Advisory:
    """What the broker says about a message that will not be delivered again."""

    kind: str
    stream: str
    consumer: str
    sequence: int
    deliveries: int

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Raises ValueError for what is no such advisory."""
        try:
            fields: dict[str, Any] = json.loads(data)
            return cls(
                kind=str(fields["type"]),
                stream=str(fields["stream"]),
                consumer=str(fields["consumer"]),
                sequence=int(fields["stream_seq"]),
                deliveries=int(fields["deliveries"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not an advisory about a message: {error!r}") from error


class DeadLetters:
    """Run one at a time per database; two would do the same work twice, to the same end."""

    def __init__(self, bus: EventBus, give_up: GiveUp) -> None:
        self._bus = bus
        self._give_up = give_up
        self.counts: Counter[str] = Counter()

    async def run(self) -> None:
        """Handles advisories until it is cancelled."""
        consumer = self._bus.consumer(subjects.ADVISORIES, DURABLE, FILTER)
        try:
            while True:
                for message in await consumer.fetch(BATCH):
                    await self._attempted(message)
        finally:
            await self._bus.release(consumer)

    async def _attempted(self, message: Message) -> None:
        try:
            await self._handle(Advisory.parse(message.data))
        except ValueError as error:
            logger.error("message %s on %s is dropped: %s", message.sequence, message.subject, error)
        except TunesmithError as error:
            logger.warning("a dead letter waits: %s", error.message)
            await message.nak(RETRY_SECONDS)
            return
        await message.ack()

    async def _handle(self, advisory: Advisory) -> None:
        """Every step may be repeated; the message is deleted last, so that none is forgotten."""
        if advisory.stream != subjects.WORK:
            return
        found = await self._bus.message_at(advisory.stream, advisory.sequence)
        if found is None:
            self.counts["refused"] += 1
            logger.info(
                "queue message %s was refused by a worker of %s (%s refused so far)",
                advisory.sequence,
                advisory.consumer,
                self.counts["refused"],
            )
            return
        subject, data = found
        reason = _reason(advisory)
        await self._keep(advisory, subject, data, reason)
        item = _work_item(subject, data)
        if item is not None:
            await self._give_up(item.task_id, item.attempt, reason)
        await self._bus.delete_message(advisory.stream, advisory.sequence)
        self.counts["dead"] += 1
        logger.warning(
            "queue message %s on %s (%s bytes, %s) is a dead letter: %s; it is kept on %s (%s so far)",
            advisory.sequence,
            subject,
            len(data),
            "not a work item" if item is None else f"attempt {item.attempt}",
            reason,
            subjects.deadletter(subject),
            self.counts["dead"],
        )

    async def _keep(self, advisory: Advisory, subject: str, data: bytes, reason: str) -> None:
        headers = {
            "Tunesmith-Reason": reason,
            "Tunesmith-Stream": advisory.stream,
            "Tunesmith-Sequence": str(advisory.sequence),
            "Tunesmith-Consumer": advisory.consumer,
            "Tunesmith-Deliveries": str(advisory.deliveries),
        }
        message_id = f"{advisory.stream}.{advisory.sequence}"
        await self._bus.publish(subjects.deadletter(subject), data, message_id=message_id, headers=headers)


def _reason(advisory: Advisory) -> str:
    if advisory.kind == MAX_DELIVERIES:
        return f"it was delivered {advisory.deliveries} times and no worker could take it on"
    return "a worker refused it for good"


def _work_item(subject: str, data: bytes) -> WorkItem | None:
    """The work item in a message, None when it is none or is about another task than its subject."""
    try:
        item = WorkItem.FromString(data)
    except DecodeError:
        return None
    return item if item.attempt >= 1 and item.task_id and subject.endswith(f".{item.task_id}") else None
