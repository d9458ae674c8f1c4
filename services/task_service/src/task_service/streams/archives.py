"""Stored logs: the object with a log's lines, and the row that says how much of it counts."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, Select, case, delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from servicekit.identity import Principal
from task_service.database.access import Database
from task_service.database.models import LogArchiveRow, TaskRow
from task_service.database.tasks import task_not_found, visible_to
from task_service.domain.lifecycle import FINAL, State
from task_service.streams.cursors import LogPosition
from task_service.streams.lines import decode

# How long to wait, after the end of a task, for the lines of a worker that died before its last batch.
FINAL_WAIT_SECONDS = 10.0
# How long stored lines stay in the stream, for readers to change over to the object.
PURGE_AFTER_SECONDS = 120.0


def log_key(task_id: str) -> str:
    """Key of a task's stored log."""
    return f"tasks/{task_id}/log.txt"


@dataclass(frozen=True, slots=True)
class StoredLog:
    """How much of a log is stored: lines, bytes, and the stream's last message among them; see LogArchiveRow."""

    lines: int = 0
    size: int = 0
    sequence: int = 0
    attempt: int = 0
    batch: int = 0
    purged_sequence: int = 0

    @property
    def end(self) -> LogPosition:
        """Where the part begins that is not stored."""
        return LogPosition(self.lines, self.sequence, self.attempt, self.batch)


@dataclass(frozen=True, slots=True)
class TaskLog:
    """What readers and the archiver need to know of a task."""

    number: int
    task_id: str
    state: State
    attempt: int
    log_attempt: int
    stored: StoredLog

    @property
    def ended(self) -> bool:
        """Whether no more lines come unless a user resumes the task."""
        return self.state in FINAL

    @property
    def archived(self) -> bool:
        """Whether the whole log is stored, but for lines that came very late."""
        return self.ended and self.log_attempt >= self.attempt


def is_complete(log: TaskLog, newest: tuple[int, bytes] | None) -> bool:
    """Whether the newest message in the stream is the last batch of an ended task's attempt."""
    if log.attempt == 0:
        return True
    batch = decode(newest[1]) if newest else None
    return batch is not None and batch.final and batch.attempt >= log.attempt


class LogArchives:
    """The rows of stored logs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def visible(self, principal: Principal, task_id: str) -> TaskLog:
        """The log of a task that a caller may see. Raises NotFound."""
        logs = await self._list(_query().where(TaskRow.id == task_id, visible_to(principal)))
        if not logs:
            raise task_not_found(task_id)
        return logs[0]

    async def get(self, task_id: str) -> TaskLog | None:
        """The log of a task, None when the task is gone."""
        logs = await self._list(_query().where(TaskRow.id == task_id, TaskRow.delete_time == 0))
        return logs[0] if logs else None

    async def to_archive(self, limit: int) -> list[TaskLog]:
        """Tasks that have ended and whose log is not stored yet."""
        due = _query().where(TaskRow.log_attempt < TaskRow.attempt, TaskRow.state.in_(sorted(FINAL)))
        return await self._list(due.where(TaskRow.delete_time == 0).order_by(TaskRow.number).limit(limit))

    async def to_purge(self, limit: int) -> list[TaskLog]:
        """Tasks with stored lines that are in the stream, too."""
        due = _query().where(LogArchiveRow.purged_sequence < LogArchiveRow.sequence)
        return await self._list(due.where(TaskRow.delete_time == 0).order_by(TaskRow.number).limit(limit))

    async def _list(self, query: Select[*tuple[Any, ...]]) -> list[TaskLog]:
        async with self._database.reading() as session:
            return [_task_log(row) for row in await session.execute(query)]

    async def store(self, log: TaskLog, stored: StoredLog) -> bool:
        """Says how much is stored now that the attempt has ended; False when somebody else was faster."""

        async def transaction(session: AsyncSession) -> bool:
            locked = select(TaskRow.number).where(TaskRow.number == log.number).with_for_update()
            row = await session.get(LogArchiveRow, log.number)
            if await session.scalar(locked) is None or (row.sequence if row else 0) != log.stored.sequence:
                return False
            if row is None:
                row = LogArchiveRow(task_number=log.number, purged_sequence=0)
                session.add(row)
            row.lines, row.size = stored.lines, stored.size
            row.sequence, row.attempt, row.batch = stored.sequence, stored.attempt, stored.batch
            await _set_log_attempt(session, log, log.attempt)
            return True

        return await self._database.transaction(transaction)

    async def purged(self, log: TaskLog, sequence: int) -> None:
        """Says that the stream no longer holds what is stored up to a sequence."""

        async def transaction(session: AsyncSession) -> None:
            await session.execute(
                update(LogArchiveRow).where(LogArchiveRow.task_number == log.number).values(purged_sequence=sequence)
            )

        await self._database.transaction(transaction)

    async def stream_ends_at(self, last: int) -> int:
        """Corrects what is said of messages beyond the stream's last, because the stream was lost; of how many logs.

        Where stored lines had left the stream, all that it has now is new; elsewhere only its end is missing.
        """
        next_one = case((LogArchiveRow.purged_sequence == LogArchiveRow.sequence, 0), else_=last)
        change = (
            update(LogArchiveRow)
            .where(LogArchiveRow.sequence > last)
            .values(sequence=next_one, purged_sequence=0)
            .returning(LogArchiveRow.task_number)
        )

        async def transaction(session: AsyncSession) -> int:
            return len((await session.execute(change)).all())

        return await self._database.transaction(transaction)

    async def reopen(self, log: TaskLog, *, from_start: bool = False) -> None:
        """Has the log looked at again; from the start when what was stored turned out not to be there."""

        async def transaction(session: AsyncSession) -> None:
            if from_start:
                await session.execute(delete(LogArchiveRow).where(LogArchiveRow.task_number == log.number))
            await _set_log_attempt(session, log, 0)

        await self._database.transaction(transaction)


async def _set_log_attempt(session: AsyncSession, log: TaskLog, attempt: int) -> None:
    await session.execute(update(TaskRow).where(TaskRow.number == log.number).values(log_attempt=attempt))


_STORED = (
    LogArchiveRow.lines,
    LogArchiveRow.size,
    LogArchiveRow.sequence,
    LogArchiveRow.attempt,
    LogArchiveRow.batch,
    LogArchiveRow.purged_sequence,
)


def _query() -> Select[*tuple[Any, ...]]:
    return select(TaskRow.number, TaskRow.id, TaskRow.state, TaskRow.attempt, TaskRow.log_attempt, *_STORED).outerjoin(
        LogArchiveRow, LogArchiveRow.task_number == TaskRow.number
    )


def _task_log(row: Row[*tuple[Any, ...]]) -> TaskLog:
    number, task_id, state, attempt, log_attempt, *stored = row
    return TaskLog(number, task_id, State(state), attempt, log_attempt, StoredLog(*(value or 0 for value in stored)))
