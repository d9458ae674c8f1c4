"""Use cases of a task's owner: stop, resume, delete."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from servicekit.errors import FailedPrecondition, NotFound
from servicekit.identity import Principal
from task_service.commands.core import Core
from task_service.commands.recorder import Recorder
from task_service.database import lifecycles
from task_service.database.access import current_time
from task_service.database.models import CheckpointRow, TaskDependencyRow, TaskRow, TaskSpecRow
from task_service.database.tasks import TaskRepository
from task_service.datasets.use import require_dataset
from task_service.domain.lifecycle import HELD, NotAllowed, State
from task_service.quotas.admission import require_quota
from task_service.sources.use import require_checkpoint, require_source, require_unused
from tunesmith.task.v1 import spec_pb2, task_pb2

T = TypeVar("T")

REAP_GRACE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Steering:
    """Changes that a user asks for; each sees the caller's own tasks only."""

    core: Core

    async def stop(self, principal: Principal, task_id: str, discard: bool) -> task_pb2.Task:
        """Ends a task. Raises NotFound, or FailedPrecondition when it has ended."""

        async def work(_: AsyncSession, row: TaskRow, recorder: Recorder) -> task_pb2.Task:
            lifecycle = lifecycles.load(row)
            await recorder.apply(row, lifecycle, lifecycle.stop(discard, recorder.now))
            return await recorder.message(row)

        return await self._change(principal, task_id, work)

    async def resume(self, principal: Principal, task_id: str, checkpoint_step: int) -> task_pb2.Task:
        """Starts a new run. Raises NotFound, or FailedPrecondition when that is impossible."""

        async def work(session: AsyncSession, row: TaskRow, recorder: Recorder) -> task_pb2.Task:
            lifecycle = lifecycles.load(row)
            base = await _base_step(session, row, checkpoint_step)
            blocked = await _still_waits(session, row)
            await require_dataset(session, principal, row)
            await require_source(session, principal, row)
            if not base:
                await require_checkpoint(session, principal, row)
            await self._require_quota(session, row)
            outcome = lifecycle.resume(checkpoint_step, base, blocked)
            _reset_progress(row, base)
            await recorder.apply(row, lifecycle, outcome)
            return await recorder.message(row)

        return await self._change(principal, task_id, work)

    async def delete(self, principal: Principal, task_id: str, force: bool) -> None:
        """Makes a task invisible at once; what is stored of it goes later. Raises NotFound or FailedPrecondition.

        Unless force is set it is refused while an unfinished evaluation, export or training starts from the task; by
        force, those that run already keep what they need until they have ended.
        """

        async def work(session: AsyncSession, row: TaskRow, recorder: Recorder) -> None:
            if not force:
                await require_unused(session, row)
            lifecycle = lifecycles.load(row)
            held = lifecycle.state in HELD
            outcome = lifecycle.delete(force, recorder.now)
            # A worker that has not heard of it yet may still write for as long as its lease lives.
            grace = self.core.policy.lease_seconds + REAP_GRACE_SECONDS if held else 0.0
            row.reap_time = recorder.now + int(grace * 1_000_000)
            await recorder.apply(row, lifecycle, outcome)
            row.delete_time = recorder.now

        await self._change(principal, task_id, work)

    async def _require_quota(self, session: AsyncSession, row: TaskRow) -> None:
        stored = await session.get_one(TaskSpecRow, row.number)
        spec = spec_pb2.TaskSpec.FromString(stored.spec)
        await require_quota(session, self.core.checkpoint_quota, row.owner, spec)

    async def _change(
        self,
        principal: Principal,
        task_id: str,
        work: Callable[[AsyncSession, TaskRow, Recorder], Awaitable[T]],
    ) -> T:
        async def transaction(session: AsyncSession) -> T:
            row = await TaskRepository(session).get(principal, task_id, lock=True)
            return await work(session, row, Recorder(session, self.core.outbox, await current_time(session)))

        try:
            async with self.core.database.caller():
                result = await self.core.database.transaction(transaction)
        except NotAllowed as refused:
            raise FailedPrecondition(str(refused), reason="TASK_STATE", metadata={"task_id": task_id}) from None
        self.core.outbox.wake()
        return result


async def _base_step(session: AsyncSession, row: TaskRow, checkpoint_step: int) -> int:
    """Step that a new run starts from, 0 for the beginning. Raises NotFound for a checkpoint that is not stored."""
    query = select(CheckpointRow.step).where(CheckpointRow.task_number == row.number)
    if checkpoint_step:
        if await session.scalar(query.where(CheckpointRow.step == checkpoint_step).limit(1)) is None:
            raise NotFound(f"task {row.id} has no stored checkpoint at step {checkpoint_step}")
        return checkpoint_step
    newest = query.where(CheckpointRow.rejected_reason == "").order_by(
        CheckpointRow.run.desc(), CheckpointRow.step.desc()
    )
    return await session.scalar(newest.limit(1)) or 0


async def _still_waits(session: AsyncSession, row: TaskRow) -> bool:
    """Whether something it depends on is unfinished. Raises FailedPrecondition when that will not come."""
    wanted = select(TaskDependencyRow.depends_on).where(TaskDependencyRow.task_number == row.number)
    ids = list(await session.scalars(wanted))
    if not ids:
        return False
    query = select(TaskRow).where(TaskRow.id.in_(ids), TaskRow.delete_time == 0).order_by(TaskRow.number)
    found = {task.id: task.state for task in await session.scalars(query.with_for_update(read=True))}
    hopeless = [task_id for task_id in ids if found.get(task_id) in (None, State.FAILED, State.STOPPED)]
    if hopeless:
        raise FailedPrecondition(
            f"it depends on {', '.join(hopeless)}, which did not complete: resume that first",
            reason="DEPENDENCY_FAILED",
        )
    return any(state != State.COMPLETED for state in found.values())


def _reset_progress(row: TaskRow, step: int) -> None:
    row.step, row.phase = step, ""
    row.percent = 100.0 * step / row.total_steps if row.total_steps else 0.0
    row.epoch = row.eta_seconds = 0.0
