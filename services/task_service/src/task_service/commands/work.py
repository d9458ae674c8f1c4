"""Use cases of workers: claim a task, and keep it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from servicekit.errors import Aborted, FailedPrecondition, PermissionDenied
from servicekit.identity import ANONYMOUS, Principal
from task_service.commands.core import Core
from task_service.commands.recorder import Recorder, leftovers
from task_service.convert import checkpoint_message, timestamp
from task_service.database import lifecycles
from task_service.database.access import current_time
from task_service.database.models import AttemptRow, CheckpointRow, TaskDependencyRow, TaskRow
from task_service.database.tasks import TaskRepository
from task_service.domain.lifecycle import Claim, Directive, Refusal
from task_service.domain.quota import Quota
from task_service.quotas.convert import allowance_message
from task_service.quotas.records import QuotaRepository
from task_service.sources.checkpoints import named_checkpoint
from task_service.sources.describe import source_of
from tunesmith.task.v1 import task_service_pb2

# Whether facts of a task wait to be recorded; then nothing may be decided about its attempt.
FactsWaiting = Callable[[str], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class _Answer:
    refusal: Refusal | None = None
    takes_over: bool = False
    response: task_service_pb2.ClaimTaskResponse | None = None


def require_service(principal: Principal) -> None:
    """Raises PermissionDenied for users. Without authentication everybody is the same caller, workers too."""
    if not principal.is_service and principal is not ANONYMOUS:
        raise PermissionDenied("only a worker may do this", reason="SERVICE_ROLE_REQUIRED")


@dataclass(frozen=True, slots=True)
class Work:
    """Claims and heartbeats."""

    core: Core
    facts_waiting: FactsWaiting

    async def claim(
        self, principal: Principal, task_id: str, attempt: int, worker: str
    ) -> task_service_pb2.ClaimTaskResponse:
        """Starts an attempt. Raises FailedPrecondition: drop the message; Aborted: try again later."""
        require_service(principal)
        answer = await self._try(task_id, attempt, worker, take_over=False)
        if answer.takes_over:
            if await self.facts_waiting(task_id):
                raise Aborted("what the last worker said is still being recorded", reason="FACTS_WAITING")
            answer = await self._try(task_id, attempt, worker, take_over=True)
        if answer.refusal is Refusal.HELD:
            raise Aborted("another worker holds the task and is alive", reason="LEASE_HELD")
        if answer.response is None:
            word = "TASK_ENDED" if answer.refusal is Refusal.ENDED else "STALE_MESSAGE"
            raise FailedPrecondition("the task has ended, or this message is out of date: drop it", reason=word)
        return answer.response

    async def _try(self, task_id: str, attempt: int, worker: str, *, take_over: bool) -> _Answer:
        async def transaction(session: AsyncSession) -> _Answer:
            row = (await TaskRepository(session).lock([task_id])).get(task_id)
            if row is None or row.delete_time:
                return _Answer(Refusal.ENDED)
            recorder = Recorder(session, self.core.outbox, await current_time(session))
            lifecycle = lifecycles.load(row)
            claim = lifecycle.claim(attempt, worker, recorder.now, self.core.policy)
            if claim.lost and not take_over:
                return _Answer(takes_over=True)
            if claim.lost:
                await _mark_lost(session, row, claim, recorder.now)
            if claim.outcome.change and not claim.refusal:
                session.add(
                    AttemptRow(
                        task_number=row.number,
                        attempt=lifecycle.attempt,
                        run=lifecycle.run,
                        worker=worker,
                        start_time=recorder.now,
                    )
                )
            await recorder.apply(row, lifecycle, claim.outcome, attempt=claim.lost or None)
            if claim.refusal:
                return _Answer(claim.refusal)
            return _Answer(response=await self._response(session, row, recorder))

        answer = await self.core.database.transaction(transaction)
        self.core.outbox.wake()
        return answer

    async def _response(
        self, session: AsyncSession, row: TaskRow, recorder: Recorder
    ) -> task_service_pb2.ClaimTaskResponse:
        checkpoints, exact = await resume_candidates(session, row)
        own = [checkpoint_message(row.id, checkpoint) for checkpoint in checkpoints]
        named = [] if own else await named_checkpoint(session, row)
        return task_service_pb2.ClaimTaskResponse(
            task=await recorder.message(row),
            resume_from=own or named,
            resume_exact=exact or bool(named),
            lease_seconds=self.core.policy.lease_seconds,
            dependency_outputs=await _dependency_outputs(session, row),
            allowance=allowance_message((await self._quotas(session).at_this_time(row.owner))[0]),
            source=await source_of(session, row),
        )

    def _quotas(self, session: AsyncSession) -> QuotaRepository:
        return QuotaRepository(session, self.core.checkpoint_quota)

    async def heartbeat(
        self, principal: Principal, request: task_service_pb2.HeartbeatTaskRequest
    ) -> task_service_pb2.HeartbeatTaskResponse:
        """Extends a lease and says what is wanted; ABANDON when the attempt is not the worker's any more."""
        require_service(principal)

        async def transaction(session: AsyncSession) -> tuple[Directive, int, Quota | None]:
            found = await self._quotas(session).lock_task(request.task_id)
            if found is None:
                return Directive.ABANDON, await current_time(session), None
            row, quota, now = found
            if row.delete_time:
                return Directive.ABANDON, now, None
            lifecycle = lifecycles.load(row)
            directive = lifecycle.heartbeat(request.attempt, request.worker, request.pid, now)
            lifecycles.store(lifecycle, row)
            return directive, now, quota

        directive, now, quota = await self.core.database.transaction(transaction)
        return task_service_pb2.HeartbeatTaskResponse(
            directive=task_service_pb2.Directive.ValueType(directive),
            time=timestamp(now),
            allowance=allowance_message(quota) if quota else None,
        )


async def _mark_lost(session: AsyncSession, row: TaskRow, claim: Claim, now: int) -> None:
    lost = await session.get(AttemptRow, (row.number, claim.lost))
    if lost is not None:
        lost.outcome, lost.reason, lost.end_time = "lost", "WORKER_LOST", now
        session.add(leftovers(row, claim.lost, now))


async def resume_candidates(session: AsyncSession, row: TaskRow) -> tuple[list[CheckpointRow], bool]:
    """Checkpoints to resume from, best first, and whether only the one that the user named may be used.

    The current run's own checkpoints come first. Before it has any, a run resumed from a named step takes that one
    and no other.
    """
    query = select(CheckpointRow).where(CheckpointRow.task_number == row.number)
    ordered = query.order_by(CheckpointRow.run.desc(), CheckpointRow.step.desc(), CheckpointRow.attempt.desc())
    sound = list(await session.scalars(ordered.where(CheckpointRow.rejected_reason == "")))
    if not row.resume_step:
        return sound, False
    own = [checkpoint for checkpoint in sound if checkpoint.run == row.run]
    named = await session.scalar(
        ordered.where(CheckpointRow.step == row.resume_step, CheckpointRow.run < row.run).limit(1)
    )
    return own + ([named] if named is not None else []), not own


async def _dependency_outputs(session: AsyncSession, row: TaskRow) -> dict[str, str]:
    query = (
        select(TaskRow.id, TaskRow.output_prefix)
        .join(TaskDependencyRow, TaskDependencyRow.depends_on == TaskRow.id)
        .where(TaskDependencyRow.task_number == row.number)
    )
    return dict((await session.execute(query)).all())
