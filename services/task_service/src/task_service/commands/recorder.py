"""Writes what follows from a transition: row, attempt, event, queue message, and the tasks that wait for this one."""

from collections import deque

from sqlalchemy import exists, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from servicekit.outbox import Outbox
from task_service.convert import task_message
from task_service.database import lifecycles
from task_service.database.models import AttemptRow, GarbageRow, TaskDependencyRow, TaskRow, TaskSpecRow
from task_service.database.tasks import TaskDetails
from task_service.domain.lifecycle import AttemptEnd, Change, Lifecycle, Outcome, State, dependency_failed
from task_service.events import Announcer
from tunesmith.task.v1 import task_pb2

ENDS_DEPENDENTS = {
    Change.FAILED: "failed",
    Change.STOPPED: "was stopped",
    Change.DELETED: "was deleted",
}
# Of the last the reaper takes everything.
LEAVES_NOTHING = (AttemptEnd.COMPLETED, AttemptEnd.DELETED)
# By then a worker that had not heard of the end writes no more; what a longer lease lets it write goes with the task.
LEFTOVER_MICROSECONDS = 15 * 60 * 1_000_000


class Recorder:
    """Records transitions within one transaction that began at a time."""

    def __init__(self, session: AsyncSession, outbox: Outbox, now: int) -> None:
        self._session = session
        self.now = now
        self.announce = Announcer(session, outbox, now)

    async def message(self, row: TaskRow) -> task_pb2.Task:
        """The task as callers see it now."""
        spec = await self._session.get_one(TaskSpecRow, row.number)
        return task_message(TaskDetails(row, spec))

    async def apply(self, row: TaskRow, lifecycle: Lifecycle, outcome: Outcome, *, attempt: int | None = None) -> None:
        """Stores a life cycle after a transition and does what its outcome asks for. attempt is the one that ended."""
        waiting = deque([(row, lifecycle, outcome)])
        while waiting:
            row, lifecycle, outcome = waiting.popleft()
            lifecycles.store(lifecycle, row)
            if outcome.attempt_end:
                await self._end_attempt(row, lifecycle.attempt if attempt is None else attempt, outcome)
                attempt = None
            if outcome.change:
                row.update_time = self.now
                await self.announce.task_changed(row, outcome.change.value, await self.message(row))
            if outcome.dispatch_after is not None:
                await self.announce.dispatch(row, outcome.dispatch_after)
            if outcome.change is Change.COMPLETED:
                waiting.extend(await self._unblocked(row))
            elif outcome.change in ENDS_DEPENDENTS:
                waiting.extend(await self._failed_with(row, ENDS_DEPENDENTS[outcome.change]))
        await self._session.flush()

    async def _end_attempt(self, row: TaskRow, attempt: int, outcome: Outcome) -> None:
        await self._session.execute(
            update(AttemptRow)
            .where(AttemptRow.task_number == row.number, AttemptRow.attempt == attempt)
            .values(outcome=str(outcome.attempt_end), reason=outcome.reason, end_time=self.now)
        )
        if outcome.attempt_end not in LEAVES_NOTHING:
            self._session.add(leftovers(row, attempt, self.now))

    async def _dependents(self, task_id: str) -> list[TaskRow]:
        await self._session.flush()
        waits_for_it = exists().where(
            TaskDependencyRow.task_number == TaskRow.number, TaskDependencyRow.depends_on == task_id
        )
        query = select(TaskRow).where(
            waits_for_it, TaskRow.state == State.PENDING, TaskRow.blocked, TaskRow.delete_time == 0
        )
        return list(await self._session.scalars(query.order_by(TaskRow.number).with_for_update()))

    async def _unblocked(self, row: TaskRow) -> list[tuple[TaskRow, Lifecycle, Outcome]]:
        found = []
        for dependent in await self._dependents(row.id):
            if not await incomplete_dependencies(self._session, dependent.number):
                lifecycle = lifecycles.load(dependent)
                found.append((dependent, lifecycle, lifecycle.unblock()))
        return found

    async def _failed_with(self, row: TaskRow, what: str) -> list[tuple[TaskRow, Lifecycle, Outcome]]:
        found = []
        for dependent in await self._dependents(row.id):
            lifecycle = lifecycles.load(dependent)
            outcome = lifecycle.dependency_failed(dependency_failed(row.id, what), self.now)
            found.append((dependent, lifecycle, outcome))
        return found


def leftovers(row: TaskRow, attempt: int, now: int) -> GarbageRow:
    """Has what an attempt that did not complete has stored removed, but for what its task names by then."""
    return GarbageRow(prefix=f"tasks/{row.id}/attempts/{attempt}/", due_time=now + LEFTOVER_MICROSECONDS)


async def incomplete_dependencies(session: AsyncSession, task_number: int) -> list[str]:
    """Ids of the tasks that a task depends on and that are not COMPLETED, gone ones too."""
    completed = exists().where(
        TaskRow.id == TaskDependencyRow.depends_on, TaskRow.state == State.COMPLETED, TaskRow.delete_time == 0
    )
    query = (
        select(TaskDependencyRow.depends_on)
        .where(TaskDependencyRow.task_number == task_number, ~completed)
        .order_by(TaskDependencyRow.position)
    )
    return list(await session.scalars(query))
