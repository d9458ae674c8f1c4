"""A training that goes on from a stored checkpoint, which it names as lists of checkpoints do."""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, select
from sqlalchemy.ext.asyncio import AsyncSession

from parameterkit.continuation import compared, refusals
from parameterkit.values import checkpoint_task
from servicekit.errors import InvalidArgument, Problem
from servicekit.identity import Principal
from task_service.convert import checkpoint_message
from task_service.database.models import CheckpointRow, TaskRow, TaskSourceRow, TaskSpecRow
from task_service.database.tasks import visible_to
from tunesmith.task.v1 import spec_pb2, task_pb2

FIELD = "spec.finetune.resume_from_checkpoint"


def source_of_checkpoint(spec: spec_pb2.TaskSpec) -> str:
    """The task whose stored checkpoint a training goes on from, empty for one that names none."""
    return checkpoint_task(spec.finetune.resume_from_checkpoint)


async def checkpoint_problems(session: AsyncSession, principal: Principal, spec: spec_pb2.TaskSpec) -> list[Problem]:
    """A stored checkpoint that is not there for the caller, or is of another training."""
    if not source_of_checkpoint(spec):
        return []
    name = spec.finetune.resume_from_checkpoint
    checkpoint = await _checkpoint(session, spec, visible_to(principal))
    if checkpoint is None:
        message = f"there is no stored checkpoint {name}; the task's list of checkpoints names those there are"
        return [Problem(FIELD, message)]
    stored = await session.get_one(TaskSpecRow, checkpoint.task_number)
    before = spec_pb2.TaskSpec.FromString(stored.spec).finetune
    differing = refusals(compared(before), compared(spec.finetune))
    return [Problem(FIELD, f"{name} is of another training: {text}") for text in differing]


async def use_checkpoint(session: AsyncSession, principal: Principal, row: TaskRow, spec: spec_pb2.TaskSpec) -> None:
    """Notes that a task needs a checkpoint until it has ended. Raises InvalidArgument when that is gone by now.

    The caller holds the checkpoint's task locked, as share_tasks does.
    """
    if problems := await checkpoint_problems(session, principal, spec):
        raise InvalidArgument(problems=problems)
    if task_id := source_of_checkpoint(spec):
        checkpoint = await _checkpoint(session, spec)
        steps = [checkpoint.step] if checkpoint else []
        session.add(TaskSourceRow(task_number=row.number, source_id=task_id, steps=steps))


async def named_checkpoint(session: AsyncSession, row: TaskRow) -> list[task_pb2.Checkpoint]:
    """The stored checkpoint that a task begins from, when it names one that is there.

    Its creator was let see it; it stays until the task has ended, also when its own task was deleted by force.
    """
    stored = await session.get_one(TaskSpecRow, row.number)
    spec = spec_pb2.TaskSpec.FromString(stored.spec)
    checkpoint = await _checkpoint(session, spec)
    return [checkpoint_message(source_of_checkpoint(spec), checkpoint)] if checkpoint else []


async def _checkpoint(
    session: AsyncSession, spec: spec_pb2.TaskSpec, *conditions: ColumnElement[bool]
) -> CheckpointRow | None:
    if not (task_id := source_of_checkpoint(spec)):
        return None
    query = select(CheckpointRow).join(TaskRow, TaskRow.number == CheckpointRow.task_number)
    query = query.where(TaskRow.id == task_id, CheckpointRow.rejected_reason == "")
    query = query.where(CheckpointRow.prefix == spec.finetune.resume_from_checkpoint, *conditions)
    found: Sequence[CheckpointRow] = list(await session.scalars(query.limit(1)))
    return found[0] if found else None
