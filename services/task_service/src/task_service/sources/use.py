"""Notes which tasks are sources of which, so that what an unfinished evaluation, export or training needs stays."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, select
from sqlalchemy.ext.asyncio import AsyncSession

from servicekit.errors import FailedPrecondition, Problem
from servicekit.identity import Principal
from task_service.database.models import TaskDependencyRow, TaskRow, TaskSourceRow, TaskSpecRow
from task_service.database.tasks import visible_to
from task_service.database.types import storable
from task_service.domain.lifecycle import FINAL
from task_service.sources.checkpoints import checkpoint_problems, source_of_checkpoint
from task_service.sources.describe import task_source
from task_service.sources.wish import Need, Verdict, Wish, base_task, judged, source_wish
from tunesmith.task.v1 import spec_pb2, task_service_pb2

NAMED_TASKS = 5


@dataclass(frozen=True, slots=True)
class Plan:
    """What an evaluation or export starts from, and what speaks against that; source is None when there is none."""

    wish: Wish
    source: task_service_pb2.TaskSource | None
    verdict: Verdict

    @property
    def problems(self) -> Sequence[Problem]:
        """Why it cannot start from that."""
        return self.verdict.problems

    def depends_on(self, named: Sequence[str]) -> list[str]:
        """The tasks to wait for: those that were named, and the source where it has to end first."""
        waits = self.verdict.waits and self.wish.task_id not in named
        return [*named, self.wish.task_id] if waits else list(named)


async def plan_source(
    session: AsyncSession, principal: Principal, spec: spec_pb2.TaskSpec, depends_on: Collection[str]
) -> Plan | None:
    """What a spec starts from, looked up among what the caller may see; None when it starts from no task."""
    wish = source_wish(spec)
    if wish is None:
        return None
    query = select(TaskRow).where(TaskRow.id == storable(wish.task_id), visible_to(principal))
    row = await session.scalar(query)
    if row is None:
        return Plan(wish, None, Verdict([Problem(wish.path, f"there is no task {wish.task_id}")]))
    source = await task_source(session, row)
    return Plan(wish, source, judged(wish, source, depends=wish.task_id in depends_on))


def use_source(session: AsyncSession, row: TaskRow, plan: Plan) -> None:
    """Notes that a task needs its source, and the task whose output is the source's base model.

    The caller holds the source locked, as share_tasks does.
    """
    assert plan.source is not None
    steps = list(plan.wish.steps.values())
    if not steps and plan.wish.need is Need.EVERYTHING and not plan.verdict.waits:
        steps = [item.step for item in plan.source.checkpoints]
    session.add(TaskSourceRow(task_number=row.number, source_id=plan.source.task_id, steps=steps))
    base = base_task(plan.source.spec)
    if base and base != plan.source.task_id:
        session.add(TaskSourceRow(task_number=row.number, source_id=base, position=1, steps=[]))


async def require_source(session: AsyncSession, principal: Principal, row: TaskRow) -> None:
    """Raises FailedPrecondition when what a task that is to run again starts from is not there any more."""
    stored = await session.get_one(TaskSpecRow, row.number)
    spec = spec_pb2.TaskSpec.FromString(stored.spec)
    wish = source_wish(spec)
    if wish is None:
        return
    await share_tasks(session, principal, [wish.task_id])
    query = select(TaskDependencyRow.depends_on).where(TaskDependencyRow.task_number == row.number)
    depends_on = list(await session.scalars(query))
    plan = await plan_source(session, principal, spec, depends_on)
    assert plan is not None
    problems = [problem.message for problem in plan.problems]
    if plan.verdict.waits and wish.task_id not in depends_on:
        problems = [f"task {wish.task_id}, which it starts from, runs again: wait for its end"]
    if problems:
        raise FailedPrecondition("; ".join(problems), reason="SOURCE_GONE", metadata={"task_id": wish.task_id})


async def require_checkpoint(session: AsyncSession, principal: Principal, row: TaskRow) -> None:
    """Raises FailedPrecondition when the stored checkpoint that a training has to go on from is not there any more."""
    stored = await session.get_one(TaskSpecRow, row.number)
    spec = spec_pb2.TaskSpec.FromString(stored.spec)
    if not (task_id := source_of_checkpoint(spec)):
        return
    await share_tasks(session, principal, [task_id])
    if problems := [problem.message for problem in await checkpoint_problems(session, principal, spec)]:
        raise FailedPrecondition("; ".join(problems), reason="SOURCE_GONE", metadata={"task_id": task_id})


async def share_tasks(session: AsyncSession, principal: Principal, task_ids: Collection[str]) -> dict[str, TaskRow]:
    """Those of the tasks that the caller may see, kept as they are until this transaction ends."""
    wanted = [storable(task_id) for task_id in task_ids]
    query = select(TaskRow).where(TaskRow.id.in_(wanted), visible_to(principal)).order_by(TaskRow.number)
    return {row.id: row for row in await session.scalars(query.with_for_update(read=True))} if wanted else {}


async def require_unused(session: AsyncSession, row: TaskRow) -> None:
    """Raises FailedPrecondition, with their ids, while unfinished tasks start from a task."""
    query = select(TaskRow.id).join(TaskSourceRow, TaskSourceRow.task_number == TaskRow.number)
    users = list(await session.scalars(query.where(*_unfinished_use(row.id)).order_by(TaskRow.number)))
    if users:
        more = ", ..." if len(users) > NAMED_TASKS else ""
        raise FailedPrecondition(
            f"task {row.id} is in use by {', '.join(users[:NAMED_TASKS])}{more}: wait for these tasks to end, stop "
            "them, or delete it by force",
            reason="TASK_IN_USE",
            metadata={"task_id": row.id, "used_by": ",".join(users)},
        )


async def steps_in_use(session: AsyncSession, task_id: str) -> set[int]:
    """Steps of the checkpoints of a task that unfinished tasks start from."""
    query = select(TaskSourceRow.steps).join(TaskRow, TaskRow.number == TaskSourceRow.task_number)
    return {step for steps in await session.scalars(query.where(*_unfinished_use(task_id))) for step in steps}


def _unfinished_use(source_id: str) -> tuple[ColumnElement[bool], ...]:
    return (
        TaskSourceRow.source_id == source_id,
        TaskRow.delete_time == 0,
        TaskRow.state.not_in(sorted(FINAL)),
    )
