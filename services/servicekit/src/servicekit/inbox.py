"""Inbox: remembers the messages that were handled, so that a second delivery has no second effect.

Pattern: https://microservices.io/patterns/communication-style/idempotent-consumer.html
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from sqlalchemy import Column, DateTime, Index, MetaData, String, Table, delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession


def inbox_table(metadata: MetaData) -> Table:
    """The table of a service's inbox, to be added to its own metadata and migrations."""
    return Table(
        "inbox",
        metadata,
        Column("message_id", String(80), primary_key=True),
        Column("create_time", DateTime(timezone=True), nullable=False),
        Index("ix_inbox_create_time", "create_time"),
    )


class Inbox:
    """Records message ids within the transaction that handles the messages."""

    def __init__(self, table: Table) -> None:
        self._table = table

    async def new(self, session: AsyncSession, message_ids: Sequence[str]) -> set[str]:
        """Those of the ids that were not handled before; they count as handled once the transaction commits."""
        wanted = list(dict.fromkeys(message_ids))
        if not wanted:
            return set()
        seen = set(await session.scalars(select(self._table.c.message_id).where(self._table.c.message_id.in_(wanted))))
        # In one order everywhere, so that two transactions cannot wait for each other.
        fresh = sorted(message_id for message_id in wanted if message_id not in seen)
        if fresh:
            dialect = session.get_bind().dialect.name
            insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
            now = datetime.now(UTC)
            rows = [{"message_id": message_id, "create_time": now} for message_id in fresh]
            statement = insert(self._table).values(rows).on_conflict_do_nothing().returning(self._table.c.message_id)
            return set(await session.scalars(statement))
        return set()

    async def forget(self, session: AsyncSession, older_than: timedelta) -> None:
        """Drops ids that are too old to be delivered again."""
        await session.execute(delete(self._table).where(self._table.c.create_time < datetime.now(UTC) - older_than))
