"""Reads facts off the stream in batches and acknowledges them once they are recorded."""

import asyncio
import logging
from collections.abc import Sequence

from google.protobuf.message import DecodeError
from sqlalchemy.ext.asyncio import AsyncSession

from servicekit import subjects
from servicekit.bus import EventBus, Message
from servicekit.errors import Unavailable
from task_service.commands.core import Core
from task_service.facts.recording import FactRecording
from task_service.portions import portions
from tunesmith.events.v1 import fact_pb2

logger = logging.getLogger(__name__)

DURABLE = "task-service"
BATCH = 256
BATCH_BYTES = 1024 * 1024
# How long facts wait that a killed service had fetched; when a batch takes longer, its repetition changes nothing.
ACK_WAIT_SECONDS = 5.0
MAX_ACK_PENDING = 4 * BATCH
RETRY_SECONDS = 1.0


class Undecodable(Exception):
    """A message that is no fact."""


def decode(message: Message) -> fact_pb2.Fact:
    """The fact in a message. Raises Undecodable."""
    try:
        fact = fact_pb2.Fact.FromString(message.data)
    except DecodeError as error:
        raise Undecodable(str(error)) from error
    if message.subject != subjects.fact(fact.task_id):
        raise Undecodable(f"it is about task {fact.task_id!r}")
    if fact.attempt < 1 or fact.sequence < 1:
        raise Undecodable(f"attempt {fact.attempt} and sequence {fact.sequence} count from 1")
    return fact


class FactConsumer:
    """Run one at a time per database; two would be slower, not wrong."""

    def __init__(self, core: Core, bus: EventBus) -> None:
        self._core = core
        self._bus = bus

    async def run(self) -> None:
        """Records facts until it is cancelled."""
        consumer = self._bus.consumer(
            subjects.FACTS, DURABLE, "fact.>", ack_wait=ACK_WAIT_SECONDS, max_ack_pending=MAX_ACK_PENDING
        )
        try:
            while True:
                messages = await consumer.fetch(BATCH)
                try:
                    await self.handle(messages)
                except Unavailable as error:
                    # What was not acknowledged comes again and is known by its sequence then.
                    logger.warning("facts were recorded, but not all acknowledged: %s", error.message)
        finally:
            await self._bus.release(consumer)

    async def handle(self, messages: Sequence[Message]) -> None:
        """Records messages and acknowledges them; those that are no facts are dropped with a line in the log."""
        facts: list[fact_pb2.Fact] = []
        sound: list[Message] = []
        for message in messages:
            try:
                facts.append(decode(message))
                sound.append(message)
            except Undecodable as error:
                await _drop(message, str(error))
        for start, end in portions([len(message.data) for message in sound], BATCH_BYTES):
            await self._record(sound[start:end], facts[start:end])

    async def _record(self, messages: Sequence[Message], facts: Sequence[fact_pb2.Fact]) -> None:
        try:
            await self._transaction(facts)
        except Unavailable as error:
            logger.warning("%s facts wait: %s", len(facts), error.message)
            await asyncio.sleep(RETRY_SECONDS)
            for message in messages:
                await message.nak()
            return
        except Exception:
            if len(facts) > 1:
                for message, fact in zip(messages, facts, strict=True):
                    await self._record([message], [fact])
                return
            logger.exception("a fact of task %s cannot be recorded", facts[0].task_id)
            await _drop(messages[0], "it cannot be recorded")
            return
        self._core.outbox.wake()
        for message in messages:
            await message.ack()

    async def _transaction(self, facts: Sequence[fact_pb2.Fact]) -> None:
        async def work(session: AsyncSession) -> None:
            await FactRecording.record(session, self._core, facts)

        await self._core.database.transaction(work)


async def _drop(message: Message, why: str) -> None:
    logger.error(
        "message %s on %s (%s bytes) is not a usable fact and is dropped: %s",
        message.sequence,
        message.subject,
        len(message.data),
        why,
    )
    await message.term()


async def facts_waiting(bus: EventBus, task_id: str) -> bool:
    """Whether facts of a task are on the stream and not recorded yet. Raises Unavailable."""
    return await bus.last_message(subjects.FACTS, subjects.fact(task_id)) is not None
