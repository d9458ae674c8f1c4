"""Deletes objects that nothing refers to any more."""

import asyncio
import logging

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from servicekit.errors import InvalidArgument, TunesmithError
from servicekit.objects import ObjectStore
from task_service.database.access import Database, current_time
from task_service.database.models import CheckpointRow, GarbageRow, TaskRow

logger = logging.getLogger(__name__)

BATCH = 50
POLL_SECONDS = 2.0
RETRY_SECONDS = 10.0


class GarbageCollector:
    """Run one at a time per database; rows go after their objects, so nothing is forgotten.

    Of what an attempt has stored it leaves the checkpoints that are known, and its task's output.
    """

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
                await self._delete(row.prefix)
            except InvalidArgument as error:
                logger.error("objects under %r are left alone: %s", row.prefix, error.message)
        if rows:
            await self._database.transaction(lambda session: _forget(session, [row.number for row in rows]))
        return len(rows)

    async def _delete(self, prefix: str) -> None:
        async with self._database.reading() as session:
            kept = await _named_by_task(session, prefix)
        if not any(folder.startswith(prefix) for folder in kept):
            await self._objects.delete_prefix(prefix)
        elif prefix not in kept:
            parts = {info.key.removeprefix(prefix).partition("/")[0] async for info in self._objects.list(prefix)}
            for folder in sorted(f"{prefix}{part}/" for part in parts):
                if not any(item.startswith(folder) for item in kept):
                    await self._objects.delete_prefix(folder)


async def _forget(session: AsyncSession, numbers: list[int]) -> None:
    await session.execute(delete(GarbageRow).where(GarbageRow.number.in_(numbers)))


async def _named_by_task(session: AsyncSession, prefix: str) -> set[str]:
    """Folders of the checkpoints and the output of the task that a prefix belongs to; none for other objects."""
    top, _, rest = prefix.partition("/")
    query = select(TaskRow.number, TaskRow.output_prefix).where(TaskRow.id == rest.partition("/")[0])
    task = (await session.execute(query)).first() if top == "tasks" else None
    if task is None:
        return set()
    checkpoints = await session.scalars(select(CheckpointRow.prefix).where(CheckpointRow.task_number == task.number))
    return {f"{item.rstrip('/')}/" for item in [*checkpoints, task.output_prefix] if item}
