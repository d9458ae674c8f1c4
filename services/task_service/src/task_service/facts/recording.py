"""One transaction that records a batch of facts: fenced, each once, with the events that they cause."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from task_service.commands.core import Core
from task_service.commands.recorder import Recorder
from task_service.convert import microseconds, progress_message
from task_service.database import lifecycles
from task_service.database.access import current_time
from task_service.database.metrics import PointKey, PointValue, store_points
from task_service.database.models import METRIC_NAME_LENGTH, AttemptRow, TaskRow
from task_service.database.tasks import TaskRepository
from task_service.domain import received
from task_service.domain.lifecycle import HELD, AttemptEnd, Failure, Lifecycle, Outcome
from task_service.facts.stored_checkpoints import StoredCheckpoints, is_own_prefix
from task_service.facts.texts import MESSAGE_LENGTH, PATH_LENGTH, PROBLEM_LENGTH, PROBLEMS, WORD_LENGTH, clean
from task_service.quotas.records import QuotaRepository
from tunesmith.events.v1 import fact_pb2
from tunesmith.task.v1 import task_pb2

logger = logging.getLogger(__name__)

METRICS_PER_TASK = 1000


@dataclass(slots=True)
class _Current:
    """The attempt whose facts count, with what is to be told of it at the next opportunity."""

    task: TaskRow
    attempt: AttemptRow
    seen: received.Ranges
    points: list[task_pb2.MetricPoint] = field(default_factory=list)
    progressed: bool = False


class FactRecording:
    """Applies facts in the order in which they come."""

    def __init__(self, session: AsyncSession, core: Core, now: int) -> None:
        self._session = session
        self._policy = core.policy
        self._recorder = Recorder(session, core.outbox, now)
        self._now = now
        quotas = QuotaRepository(session, core.checkpoint_quota)
        self._checkpoints = StoredCheckpoints(session, self._recorder.announce, quotas, now)
        self._points: dict[PointKey, PointValue] = {}

    @classmethod
    async def record(cls, session: AsyncSession, core: Core, facts: Sequence[fact_pb2.Fact]) -> None:
        """Records a batch; commit afterwards, then acknowledge."""
        tasks = await TaskRepository(session).lock(fact.task_id for fact in facts)
        recording = cls(session, core, await current_time(session))
        await recording._record(tasks, facts)

    async def _record(self, tasks: dict[str, TaskRow], facts: Sequence[fact_pb2.Fact]) -> None:
        current = await self._current_attempts(tasks)
        for fact in facts:
            known = current.get(fact.task_id)
            if known is None or known.task.delete_time or fact.attempt != known.attempt.attempt:
                logger.debug("task %s: a fact of attempt %s is not of the current one", fact.task_id, fact.attempt)
            elif received.add(known.seen, fact.sequence):
                await self._apply(known, fact)
        for known in current.values():
            await self._tell(known)
            known.attempt.facts_seen = known.seen
        await store_points(self._session, self._points)

    async def _current_attempts(self, tasks: dict[str, TaskRow]) -> dict[str, _Current]:
        by_number = {row.number: row for row in tasks.values()}
        query = (
            select(AttemptRow)
            .join(TaskRow, (TaskRow.number == AttemptRow.task_number) & (TaskRow.attempt == AttemptRow.attempt))
            .where(AttemptRow.task_number.in_(by_number))
        )
        found = {}
        for attempt in await self._session.scalars(query):
            task = by_number[attempt.task_number]
            found[task.id] = _Current(task, attempt, [list(item) for item in attempt.facts_seen])
        return found

    async def _apply(self, known: _Current, fact: fact_pb2.Fact) -> None:
        match fact.WhichOneof("payload"):
            case "metrics":
                self._measured(known, fact.metrics)
            case "progressed":
                self._progressed(known, fact.progressed)
            case "child_started":
                self._child_started(known, fact.child_started)
            case "checkpoint_saved":
                await self._checkpoint_saved(known, fact.checkpoint_saved)
            case "checkpoint_rejected":
                await self._tell(known)
                await self._checkpoints.rejected(known.task, fact.checkpoint_rejected)
            case "completed":
                await self._completed(known, fact.completed)
            case "stopped" | "failed" | "released":
                await self._ended(known, fact)
            case _:
                logger.warning("task %s: a fact of an unknown kind is passed over", fact.task_id)

    def _measured(self, known: _Current, metrics: fact_pb2.MetricsReported) -> None:
        task, attempt = known.task, known.attempt
        newest, steps = dict(task.metrics), dict(task.metric_steps)
        for point in metrics.points:
            if not 0 < len(point.name) <= METRIC_NAME_LENGTH or "\0" in point.name:
                logger.warning("task %s: metric with name %r passed over", task.id, point.name[:METRIC_NAME_LENGTH])
                continue
            key = (task.number, point.name, attempt.run, point.step)
            self._points[key] = (point.value, microseconds(point.time))
            known.points.append(point)
            place = [attempt.attempt, point.step]
            if steps.get(point.name, [0, 0]) <= place and (point.name in newest or len(newest) < METRICS_PER_TASK):
                newest[point.name], steps[point.name] = point.value, place
        task.metrics, task.metric_steps = newest, steps

    def _progressed(self, known: _Current, progress: task_pb2.Progress) -> None:
        task = known.task
        if task.state not in HELD:
            return
        task.step, task.total_steps = progress.step, progress.total_steps
        task.epoch, task.percent = progress.epoch, progress.percent
        task.eta_seconds, task.phase = progress.eta_seconds, clean(progress.phase, WORD_LENGTH)
        known.progressed = True

    def _child_started(self, known: _Current, started: fact_pb2.ChildStarted) -> None:
        if known.task.state not in HELD:
            return
        known.task.pid = started.pid
        known.task.step = started.resumed_step
        known.progressed = True

    async def _checkpoint_saved(self, known: _Current, checkpoint: task_pb2.Checkpoint) -> None:
        await self._tell(known)
        if await self._checkpoints.saved(known.task, known.attempt, checkpoint):
            lifecycle = lifecycles.load(known.task)
            lifecycle.checkpoint_saved(checkpoint.step)
            lifecycles.store(lifecycle, known.task)
            known.task.update_time = self._now

    async def _completed(self, known: _Current, completed: fact_pb2.AttemptCompleted) -> None:
        task = known.task
        lifecycle = lifecycles.load(task)
        outcome = lifecycle.complete(self._now, attempt_was_lost=known.attempt.outcome == AttemptEnd.LOST)
        if outcome.change is None:
            return
        if completed.HasField("progress"):
            progress = completed.progress
            task.step, task.total_steps, task.epoch = progress.step, progress.total_steps, progress.epoch
        task.percent, task.eta_seconds, task.phase = 100.0, 0.0, ""
        task.output_prefix = completed.output_prefix if is_own_prefix(completed.output_prefix, task.id) else ""
        task.output_dir = clean(completed.output_dir, PATH_LENGTH)
        task.manifest_sha256 = clean(completed.manifest_sha256, WORD_LENGTH)
        await self._finish(known, lifecycle, outcome)

    async def _ended(self, known: _Current, fact: fact_pb2.Fact) -> None:
        lifecycle = lifecycles.load(known.task)
        if fact.HasField("failed"):
            outcome = lifecycle.fail(_failure(fact.failed.error), fact.failed.retryable, self._now, self._policy)
        elif fact.HasField("stopped"):
            error = fact.stopped.error
            outcome = lifecycle.stopped(self._now, _failure(error) if error.reason else None)
        else:
            outcome = lifecycle.release(self._now)
        known.task.eta_seconds, known.task.phase = 0.0, ""
        await self._finish(known, lifecycle, outcome)

    async def _finish(self, known: _Current, lifecycle: Lifecycle, outcome: Outcome) -> None:
        await self._tell(known)
        await self._recorder.apply(known.task, lifecycle, outcome)

    async def _tell(self, known: _Current) -> None:
        """Tells of points and progress in one event each, before whatever comes next."""
        announce = self._recorder.announce
        if known.points:
            await announce.metrics_logged(known.task, known.points)
        if known.progressed:
            await announce.progressed(known.task, progress_message(known.task))
        if known.points or known.progressed:
            known.task.update_time = self._now
        known.points, known.progressed = [], False


def _failure(error: task_pb2.TaskError) -> Failure:
    problems = [clean(problem, PROBLEM_LENGTH) for problem in error.problems[:PROBLEMS]]
    return Failure(clean(error.reason, WORD_LENGTH) or "UNKNOWN", clean(error.message, MESSAGE_LENGTH), problems)
