"""Checkpoints as they are saved, found bad, and removed when there are too many."""

import logging

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from task_service.convert import checkpoint_message, microseconds
from task_service.database.models import AttemptRow, CheckpointRow, GarbageRow, TaskRow, TaskSpecRow
from task_service.events import Announcer
from task_service.facts.texts import MESSAGE_LENGTH, PATH_LENGTH, WORD_LENGTH, clean
from task_service.quotas.convert import quota_message
from task_service.quotas.records import QuotaRepository
from task_service.sources.use import steps_in_use
from tunesmith.events.v1 import fact_pb2
from tunesmith.task.v1 import spec_pb2, task_pb2

logger = logging.getLogger(__name__)


def is_own_prefix(prefix: str, task_id: str) -> bool:
    """Whether a prefix of objects lies below the task's own; what a worker names may be deleted later."""
    parts = prefix.rstrip("/").split("/")
    beneath = parts[:2] == ["tasks", task_id] and len(parts) > 2 and not {"", ".", ".."} & set(parts)
    return beneath and len(prefix) <= PATH_LENGTH and prefix.isprintable()


def folder(prefix: str) -> str:
    """The prefix that no neighbour shares: checkpoint-10/ is not the start of checkpoint-100/."""
    return prefix.rstrip("/") + "/"


class StoredCheckpoints:
    """The checkpoints of tasks within one transaction."""

    def __init__(self, session: AsyncSession, announce: Announcer, quotas: QuotaRepository, now: int) -> None:
        self._session = session
        self._announce = announce
        self._quotas = quotas
        self._now = now
        self._limits: dict[int, int] = {}

    async def saved(self, task: TaskRow, attempt: AttemptRow, checkpoint: task_pb2.Checkpoint) -> bool:
        """Records a checkpoint and removes those that it makes superfluous. False when its prefix is not the task's."""
        if not is_own_prefix(checkpoint.prefix, task.id):
            logger.warning("task %s: checkpoint at foreign prefix %r refused", task.id, checkpoint.prefix)
            return False
        existing = await self._all(task)
        row = next((item for item in existing if (item.attempt, item.step) == (attempt.attempt, checkpoint.step)), None)
        is_new = row is None
        if row is None:
            row = CheckpointRow(task_number=task.number, attempt=attempt.attempt, step=checkpoint.step)
            self._session.add(row)
            existing.append(row)
        row.run, row.prefix, row.rejected_reason = attempt.run, checkpoint.prefix, ""
        row.loss = checkpoint.loss if checkpoint.HasField("loss") else None
        row.size, row.manifest_sha256 = checkpoint.size, clean(checkpoint.manifest_sha256, WORD_LENGTH)
        row.create_time = microseconds(checkpoint.create_time) or self._now
        await self._session.flush()
        await self._announce.checkpoint(task, "saved", checkpoint_message(task.id, row))
        if is_new:
            await self._count(task)
        await self._remove_superfluous(task, existing)
        return True

    async def _count(self, task: TaskRow) -> None:
        """Counts one against the quota of the task's owner, who hears once a month that it is low, and exhausted."""
        counted = await self._quotas.count(task.owner, self._now)
        message = quota_message(task.owner, counted.quota, self._now)
        if counted.turned_low:
            await self._announce.quota(task, "low", message)
        if counted.turned_exhausted:
            await self._announce.quota(task, "exhausted", message)

    async def _all(self, task: TaskRow) -> list[CheckpointRow]:
        query = select(CheckpointRow).where(
            CheckpointRow.task_number == task.number, CheckpointRow.rejected_reason == ""
        )
        return list(await self._session.scalars(query))

    async def _remove_superfluous(self, task: TaskRow, existing: list[CheckpointRow]) -> None:
        last = {(item.run, item.step): item for item in sorted(existing, key=lambda item: item.attempt)}
        repeated = [item for item in existing if item is not last[item.run, item.step]]
        kept = sorted((item for item in existing if item not in repeated), key=lambda item: (item.attempt, item.step))
        limit = await self._limit(task)
        oldest = kept[: max(0, len(kept) - limit)] if limit else []
        superfluous = repeated + oldest
        # What an evaluation or export starts from stays; a checkpoint saved after its end lets it go.
        needed = await steps_in_use(self._session, task.id) if superfluous else set()
        for row in [item for item in superfluous if item.step not in needed]:
            await self._announce.checkpoint(task, "removed", checkpoint_message(task.id, row))
            await self._session.delete(row)
            self._session.add(GarbageRow(prefix=folder(row.prefix), due_time=self._now))
        await self._session.flush()

    async def _limit(self, task: TaskRow) -> int:
        """The task's save_total_limit; 0 keeps all."""
        if task.number not in self._limits:
            spec = await self._session.scalar(select(TaskSpecRow.spec).where(TaskSpecRow.task_number == task.number))
            parsed = spec_pb2.TaskSpec.FromString(spec or b"")
            self._limits[task.number] = parsed.finetune.training.save_total_limit
        return self._limits[task.number]

    async def rejected(self, task: TaskRow, rejection: fact_pb2.CheckpointRejected) -> None:
        """Keeps a bad checkpoint from being offered again."""
        reason = clean(rejection.reason, MESSAGE_LENGTH) or "verification failed"
        same = CheckpointRow.prefix.in_([rejection.prefix.rstrip("/"), folder(rejection.prefix)])
        row = await self._session.scalar(select(CheckpointRow).where(CheckpointRow.task_number == task.number, same))
        if row is None:
            logger.warning("task %s: unknown checkpoint %r was rejected", task.id, rejection.prefix[:PATH_LENGTH])
            message = task_pb2.Checkpoint(task_id=task.id, step=rejection.step)
        else:
            row.rejected_reason = reason
            message = checkpoint_message(task.id, row)
        await self._announce.checkpoint(task, "rejected", message, reason)
