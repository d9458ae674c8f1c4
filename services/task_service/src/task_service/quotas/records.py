"""Quotas in the database. A month that has passed resets itself: its count is not that of the current period."""

from dataclasses import dataclass

from sqlalchemy import bindparam, insert, literal, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from task_service.database.models import QuotaRow, TaskRow
from task_service.database.types import now
from task_service.domain.quota import Quota, QuotaAction, period

DEFAULT_ACTION = QuotaAction.CONTINUE_UNSAVED

# Built once: heartbeats are frequent, and building a statement costs more than running it.
_COLUMNS = (now(), QuotaRow.monthly_allowance, QuotaRow.exhausted_action, QuotaRow.period, QuotaRow.used)
_ONE = select(literal(1).label("one")).subquery()
_OWNERS = select(*_COLUMNS).select_from(_ONE.outerjoin(QuotaRow, QuotaRow.owner == bindparam("owner")))
_TASKS = (
    select(TaskRow, *_COLUMNS)
    .outerjoin(QuotaRow, QuotaRow.owner == TaskRow.owner)
    .where(TaskRow.id == bindparam("task_id"))
    .with_for_update(of=TaskRow)
)


@dataclass(frozen=True, slots=True)
class Counted:
    """A quota after one more checkpoint, and whether this is the month's first that is low, or exhausted."""

    quota: Quota
    turned_low: bool
    turned_exhausted: bool


class QuotaRepository:
    """Quotas within one session; default is the allowance of users who have none of their own."""

    def __init__(self, session: AsyncSession, default: int) -> None:
        self._session = session
        self._default = default

    async def at_this_time(self, owner: str) -> tuple[Quota, int]:
        """A user's quota and the database's clock in microseconds, in one statement."""
        time, allowance, action, month, used = (await self._session.execute(_OWNERS, {"owner": owner})).one()
        return self._quota(allowance, action, used if month == period(time) else 0), time

    async def lock_task(self, task_id: str) -> tuple[TaskRow, Quota, int] | None:
        """A task, locked, with its owner's quota and the database's clock, in one statement; None without the task."""
        found = (await self._session.execute(_TASKS, {"task_id": task_id})).one_or_none()
        if found is None:
            return None
        row, time, allowance, action, month, used = found
        return row, self._quota(allowance, action, used if month == period(time) else 0), time

    async def count(self, owner: str, time: int) -> Counted:
        """Counts a checkpoint that is recorded in this transaction."""
        row = await self.lock(owner)
        if row.period != period(time):
            row.period, row.used, row.low_told, row.exhausted_told = period(time), 0, False, False
        row.used += 1
        quota = self._quota(row.monthly_allowance, row.exhausted_action, row.used)
        turned_exhausted = quota.exhausted and not row.exhausted_told
        turned_low = quota.low and not quota.exhausted and not row.low_told
        row.low_told, row.exhausted_told = row.low_told or quota.low, row.exhausted_told or quota.exhausted
        return Counted(quota, turned_low, turned_exhausted)

    async def set(self, owner: str, allowance: int, action: int) -> None:
        """Changes what a user may store; action 0 keeps what happens when it is spent."""
        row = await self.lock(owner)
        row.monthly_allowance = allowance
        row.exhausted_action = action or row.exhausted_action

    def _quota(self, allowance: int | None, action: int | None, used: int | None) -> Quota:
        return Quota(
            self._default if allowance is None else allowance, used or 0, QuotaAction(action or DEFAULT_ACTION)
        )

    async def lock(self, owner: str) -> QuotaRow:
        """A user's row, made when there is none, locked until this transaction ends."""
        query = select(QuotaRow).where(QuotaRow.owner == owner).with_for_update()
        row = await self._session.scalar(query)
        if row is None:
            try:
                async with self._session.begin_nested():
                    values = {"period": 0, "used": 0, "low_told": False, "exhausted_told": False}
                    await self._session.execute(
                        insert(QuotaRow).values(owner=owner, exhausted_action=int(DEFAULT_ACTION), **values)
                    )
            except IntegrityError:
                pass  # another transaction was faster
            row = (await self._session.scalars(query)).one()
        return row
