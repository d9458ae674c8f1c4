"""Transactional outbox: messages written with the change they tell of, published afterwards, at least once.

The row's id becomes the message id, so that a broker drops what is published twice.
Pattern: https://microservices.io/patterns/data/transactional-outbox.html
"""

import asyncio
import json
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Row,
    String,
    Table,
    Text,
    delete,
    insert,
    select,
)
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from servicekit import telemetry
from servicekit.bus import EventBus, Outgoing
from servicekit.database import to_its_end
from servicekit.errors import Unavailable

logger = logging.getLogger(__name__)

BATCH = 256
POLL_SECONDS = 0.5
RETRY_SECONDS = 0.5


def outbox_table(metadata: MetaData) -> Table:
    """The table of a service's outbox, to be added to its own metadata and migrations."""
    return Table(
        "outbox",
        metadata,
        Column("position", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
        Column("message_id", String(40), nullable=False, unique=True),
        Column("subject", String(255), nullable=False),
        Column("payload", LargeBinary, nullable=False),
        Column("headers", Text, nullable=False),
        Column("not_before", DateTime(timezone=True), nullable=True),
        Column("create_time", DateTime(timezone=True), nullable=False),
        Index("ix_outbox_not_before", "not_before", "position"),
    )


class Outbox:
    """Adds messages within a transaction and wakes the relay after it."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self._added = asyncio.Event()

    async def add(
        self,
        session: AsyncSession,
        subject: str,
        payload: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        not_before: datetime | None = None,
        message_id: str | None = None,
    ) -> str:
        """Adds a message to the session's transaction; returns its message id. Not sent before not_before."""
        message_id = message_id or secrets.token_hex(16)
        traced = dict(headers or {})
        telemetry.inject(traced)
        await session.execute(
            insert(self.table).values(
                message_id=message_id,
                subject=subject,
                payload=payload,
                headers=json.dumps(traced),
                not_before=not_before,
                create_time=datetime.now(UTC),
            )
        )
        return message_id

    def wake(self) -> None:
        """Lets the relay look at once; call it after the commit."""
        self._added.set()

    async def wait(self, seconds: float) -> None:
        """Returns when something was added, or after some seconds."""
        try:
            async with asyncio.timeout(seconds):
                await self._added.wait()
        except TimeoutError:
            return
        finally:
            self._added.clear()


class Relay:
    """Publishes an outbox in order and deletes what the broker has stored. Run one at a time per database."""

    def __init__(
        self,
        outbox: Outbox,
        sessions: async_sessionmaker[AsyncSession],
        bus: EventBus,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._outbox = outbox
        self._sessions = sessions
        self._bus = bus
        self._clock = clock

    async def run(self) -> None:
        """Relays until it is cancelled."""
        while True:
            try:
                sent = await self.relay_once()
            except Unavailable as error:
                logger.warning("outbox: %s; trying again", error.message)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if sent < BATCH:
                await self._outbox.wait(POLL_SECONDS)

    async def relay_once(self) -> int:
        """Publishes what is due, at most one batch; how many messages. Raises Unavailable when the broker is down."""
        rows = await to_its_end(self._due())
        if not rows:
            return 0
        await self._bus.publish_all(
            [Outgoing(row.subject, row.payload, row.message_id, json.loads(row.headers)) for row in rows]
        )
        await to_its_end(self._delete([row.position for row in rows]))
        return len(rows)

    async def _due(self) -> Sequence[Row[Any]]:
        table = self._outbox.table
        due = (table.c.not_before.is_(None)) | (table.c.not_before <= self._clock())
        async with self._sessions() as session:
            return (await session.execute(select(table).where(due).order_by(table.c.position).limit(BATCH))).all()

    async def _delete(self, positions: list[int]) -> None:
        table = self._outbox.table
        async with self._sessions.begin() as session:
            await session.execute(delete(table).where(table.c.position.in_(positions)))
