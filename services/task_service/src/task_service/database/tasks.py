"""Reading and locking tasks. Whoever may not see a task is told that there is none."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, select
from sqlalchemy.ext.asyncio import AsyncSession

from servicekit.errors import NotFound
from servicekit.identity import Principal
from task_service.database.models import CheckpointRow, TaskDependencyRow, TaskRow, TaskSpecRow, UserRow


@dataclass(frozen=True, slots=True)
class TaskDetails:
    """A task with everything that its message shows."""

    row: TaskRow
    spec: TaskSpecRow
    owner_number: int
    depends_on: tuple[str, ...]


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

    async def details(self, rows: Sequence[TaskRow]) -> list[TaskDetails]:
        """What the messages of these tasks need, in the same order, with three queries in all."""
        numbers = [row.number for row in rows]
        owners = {row.owner for row in rows}
        specs = await self._session.scalars(select(TaskSpecRow).where(TaskSpecRow.task_number.in_(numbers)))
        spec_of = {spec.task_number: spec for spec in specs}
        users = await self._session.execute(select(UserRow.name, UserRow.number).where(UserRow.name.in_(owners)))
        user_of = dict(users.all())
        dependencies = await self._session.execute(
            select(TaskDependencyRow.task_number, TaskDependencyRow.depends_on)
            .where(TaskDependencyRow.task_number.in_(numbers))
            .order_by(TaskDependencyRow.task_number, TaskDependencyRow.position)
        )
        depends_on: dict[int, list[str]] = {}
        for number, task_id in dependencies:
            depends_on.setdefault(number, []).append(task_id)
        return [
            TaskDetails(row, spec_of[row.number], user_of.get(row.owner, 0), tuple(depends_on.get(row.number, ())))
            for row in rows
        ]

    async def checkpoints(self, task: TaskRow) -> list[CheckpointRow]:
        """Stored checkpoints that were not rejected, oldest first."""
        query = (
            select(CheckpointRow)
            .where(CheckpointRow.task_number == task.number, CheckpointRow.rejected_reason == "")
            .order_by(CheckpointRow.number)
        )
        return list(await self._session.scalars(query))
