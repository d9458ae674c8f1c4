"""Removes what is left of deleted tasks: stored objects, log lines, points of metrics, rows."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import CursorResult, delete, exists, or_, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from servicekit import subjects
from servicekit.bus import EventBus
from servicekit.errors import TunesmithError
from servicekit.objects import ObjectStore
from task_service.database.access import Database
from task_service.database.models import MetricPointRow, TaskDependencyRow, TaskRow, TaskSourceRow
from task_service.database.types import now
from task_service.domain.lifecycle import FINAL

logger = logging.getLogger(__name__)

PAGE = 100
POINTS = 20_000
POLL_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Deleted:
    """A task to remove."""

    number: int
    task_id: str


class Reaper:
    """Run one at a time per database. A task's own row goes last, so dying on the way only means to begin again."""

    def __init__(self, database: Database, bus: EventBus, objects: ObjectStore) -> None:
        self._database = database
        self._bus = bus
        self._objects = objects

    async def run(self) -> None:
        """Reaps until it is cancelled."""
        while True:
            try:
                await self.reap_due()
            except TunesmithError as error:
                logger.warning("deleted tasks wait to be removed: %s", error.message)
            await asyncio.sleep(POLL_SECONDS)

    async def reap_due(self) -> int:
        """Removes every task whose time has come; how many. Raises Unavailable."""
        reaped, after = 0, 0
        while page := await self._due(after):
            after = page[-1].number
            reaped += sum([await self._attempted(task) for task in page])
        return reaped

    async def _due(self, after: int) -> Sequence[Deleted]:
        """Deleted tasks that no worker may write to any more and from whose work no unfinished task starts."""
        dependent = aliased(TaskRow)
        unfinished = (dependent.delete_time == 0, dependent.state.not_in(sorted(FINAL)))
        needed = or_(
            exists().where(
                TaskDependencyRow.depends_on == TaskRow.id,
                dependent.number == TaskDependencyRow.task_number,
                *unfinished,
            ),
            exists().where(
                TaskSourceRow.source_id == TaskRow.id, dependent.number == TaskSourceRow.task_number, *unfinished
            ),
        )
        query = (
            select(TaskRow.number, TaskRow.id)
            .where(TaskRow.delete_time > 0, TaskRow.reap_time <= now(), TaskRow.number > after, ~needed)
            .order_by(TaskRow.number)
            .limit(PAGE)
        )
        async with self._database.reading() as session:
            return [Deleted(number, task_id) for number, task_id in await session.execute(query)]

    async def _attempted(self, task: Deleted) -> bool:
        """One task's trouble is not another's."""
        try:
            await self._reap(task)
        except TunesmithError as error:
            logger.warning("task %s waits to be removed: %s", task.task_id, error.message)
            return False
        logger.info("task %s is removed", task.task_id)
        return True

    async def _reap(self, task: Deleted) -> None:
        await self._objects.delete_prefix(f"tasks/{task.task_id}/")
        await self._bus.purge(subjects.LOGS, subjects.log(task.task_id))
        while await self._database.transaction(lambda session: _delete_points(session, task.number)):
            pass
        await self._database.transaction(lambda session: _delete_row(session, task.number))


async def _delete_points(session: AsyncSession, number: int) -> bool:
    """Deletes some points, few enough for others to write in between; whether there were any."""
    key = (MetricPointRow.task_number, MetricPointRow.name, MetricPointRow.run, MetricPointRow.step)
    some = select(*key).where(MetricPointRow.task_number == number).limit(POINTS)
    deleted = await session.execute(delete(MetricPointRow).where(tuple_(*key).in_(some)))
    assert isinstance(deleted, CursorResult)
    return deleted.rowcount > 0


async def _delete_row(session: AsyncSession, number: int) -> None:
    """Deletes the task's row and, by their foreign keys, what else refers to it."""
    await session.execute(delete(TaskRow).where(TaskRow.number == number))
