"""Deletes objects that nothing refers to any more."""

import asyncio
import logging

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from servicekit.errors import InvalidArgument, TunesmithError
from servicekit.objects import ObjectStore
from task_service.database.access import Database, current_time
from task_service.database.models import GarbageRow

logger = logging.getLogger(__name__)

BATCH = 50
POLL_SECONDS = 2.0
RETRY_SECONDS = 10.0


class GarbageCollector:
    """Run one at a time per database; rows go after their objects, so nothing is forgotten."""

    def __init__(self, database: Database, objects: ObjectStore) -> None:
        self._database = database
        self._objects = objects

    async def run(self) -> None:
        """Collects until it is cancelled."""
        while True:
            try:
                collected = await self.collect_once()
            except TunesmithError as error:
                logger.warning("objects wait to be deleted: %s", error.message)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if collected < BATCH:
                await asyncio.sleep(POLL_SECONDS)

    async def collect_once(self) -> int:
        """Deletes what is due, at most one batch; how many prefixes. Raises Unavailable."""
        async with self._database.reading() as session:
            now = await current_time(session)
            query = select(GarbageRow).where(GarbageRow.due_time <= now).order_by(GarbageRow.number).limit(BATCH)
            rows = list(await session.scalars(query))
        for row in rows:
            try:
                await self._objects.delete_prefix(row.prefix)
            except InvalidArgument as error:
                logger.error("objects under %r are left alone: %s", row.prefix, error.message)
        if rows:
            await self._database.transaction(lambda session: _forget(session, [row.number for row in rows]))
        return len(rows)


async def _forget(session: AsyncSession, numbers: list[int]) -> None:
    await session.execute(delete(GarbageRow).where(GarbageRow.number.in_(numbers)))
