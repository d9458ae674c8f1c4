"""Reading and locking tasks. Whoever may not see a task is told that there is none."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, select
from sqlalchemy.ext.asyncio import AsyncSession

from servicekit.errors import NotFound
from servicekit.identity import Principal
from task_service.database.models import CheckpointRow, TaskRow, TaskSpecRow
from tunesmith.task.v1 import task_pb2

KINDS_WITH_SOURCE = (task_pb2.KIND_EVALUATE, task_pb2.KIND_EXPORT)


@dataclass(frozen=True, slots=True)
class TaskDetails:
    """A task with everything that its message shows."""

    row: TaskRow
    spec: TaskSpecRow


def visible_to(principal: Principal) -> ColumnElement[bool]:
    """The condition that limits a query to what a caller may see: a user's own tasks, for others all."""
    alive = TaskRow.delete_time == 0
    return alive if principal.is_admin or principal.is_service else alive & (TaskRow.owner == principal.user)


def task_not_found(task_id: str | int) -> NotFound:
    """The error for a task that does not exist, or not for this caller."""
    return NotFound(f"there is no task {task_id}", reason="TASK_NOT_FOUND", metadata={"task_id": str(task_id)})


class TaskRepository:
    """Tasks within one session."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def get(self, principal: Principal, task_id: str = "", *, number: int = 0, lock: bool = False) -> TaskRow:
        """A task by id or number. Raises NotFound, also for somebody else's task."""
        chosen = TaskRow.id == task_id if task_id else TaskRow.number == number
        query = select(TaskRow).where(chosen, visible_to(principal))
        row = await self._session.scalar(query.with_for_update() if lock else query)
        if row is None:
            raise task_not_found(task_id or number)
        return row

    async def lock(self, task_ids: Iterable[str]) -> dict[str, TaskRow]:
        """The tasks with these ids, deleted ones too, locked in one order so that two callers cannot deadlock."""
        query = select(TaskRow).where(TaskRow.id.in_(sorted(set(task_ids)))).order_by(TaskRow.number).with_for_update()
        return {row.id: row for row in await self._session.scalars(query)}

    async def read(self, principal: Principal, task_id: str = "", *, number: int = 0) -> TaskDetails:
        """A task as its message shows it, in one query. Raises NotFound, also for somebody else's task."""
        chosen = TaskRow.id == task_id if task_id else TaskRow.number == number
        query = select(TaskRow, TaskSpecRow).join(TaskSpecRow, TaskSpecRow.task_number == TaskRow.number)
        found = (await self._session.execute(query.where(chosen, visible_to(principal)))).one_or_none()
        if found is None:
            raise task_not_found(task_id or number)
        return TaskDetails(*found)

    async def details(self, rows: Sequence[TaskRow]) -> list[TaskDetails]:
        """What the messages of these tasks need, in the same order."""
        numbers = [row.number for row in rows]
        specs = await self._session.scalars(select(TaskSpecRow).where(TaskSpecRow.task_number.in_(numbers)))
        spec_of = {spec.task_number: spec for spec in specs}
        return [TaskDetails(row, spec_of[row.number]) for row in rows]

    async def checkpoints(self, task: TaskRow) -> list[CheckpointRow]:
        """Stored checkpoints that were not rejected, oldest first."""
        query = (
            select(CheckpointRow)
            .where(CheckpointRow.task_number == task.number, CheckpointRow.rejected_reason == "")
            .order_by(CheckpointRow.number)
        )
        return list(await self._session.scalars(query))
