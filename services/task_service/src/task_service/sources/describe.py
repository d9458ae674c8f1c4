"""What a task has produced, as evaluations, exports and generation start from it."""

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from servicekit.identity import Principal
from task_service.convert import checkpoint_message
from task_service.database.access import Database
from task_service.database.models import CheckpointRow, TaskRow, TaskSpecRow
from task_service.database.tasks import KINDS_WITH_SOURCE, TaskRepository
from task_service.domain.lifecycle import State
from task_service.sources.wish import base_task, source_wish
from tunesmith.task.v1 import spec_pb2, task_pb2, task_service_pb2


class Sources:
    """Answers questions about sources; each sees the caller's own tasks only."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, principal: Principal, task_id: str) -> task_service_pb2.TaskSource:
        """What a task has produced. Raises NotFound, also for somebody else's task."""
        async with self._database.caller(), self._database.reading() as session:
            return await task_source(session, await TaskRepository(session).get(principal, task_id))


async def task_source(session: AsyncSession, row: TaskRow) -> task_service_pb2.TaskSource:
    """What a task has produced, as far as it has come; of several checkpoints of one step the newest."""
    stored = await session.get_one(TaskSpecRow, row.number)
    spec = spec_pb2.TaskSpec.FromString(stored.spec)
    source = task_service_pb2.TaskSource(
        task_id=row.id,
        name=row.name,
        spec=spec,
        state=task_pb2.State.ValueType(row.state),
        checkpoints=[checkpoint_message(row.id, item) for item in await _newest_of_each_step(session, row)],
        base_model_prefix=await _output_of(session, base_task(spec)),
    )
    if row.state == State.COMPLETED:
        source.output.CopyFrom(
            task_service_pb2.TaskOutput(
                prefix=row.output_prefix, manifest_sha256=row.manifest_sha256, directory=row.output_dir, step=row.step
            )
        )
    return source


async def source_of(session: AsyncSession, row: TaskRow) -> task_service_pb2.TaskSource | None:
    """What the task that an evaluation or export starts from has produced, also when that was deleted since.

    None for other work.
    """
    if row.kind not in KINDS_WITH_SOURCE:
        return None
    stored = await session.get_one(TaskSpecRow, row.number)
    wish = source_wish(spec_pb2.TaskSpec.FromString(stored.spec))
    source = await session.scalar(select(TaskRow).where(TaskRow.id == wish.task_id)) if wish else None
    return None if source is None else await task_source(session, source)


async def _newest_of_each_step(session: AsyncSession, row: TaskRow) -> list[CheckpointRow]:
    newest: dict[int, CheckpointRow] = {}
    for item in await TaskRepository(session).checkpoints(row):
        other = newest.get(item.step)
        if other is None or (other.run, other.attempt) < (item.run, item.attempt):
            newest[item.step] = item
    return sorted(newest.values(), key=lambda item: item.number)


async def _output_of(session: AsyncSession, task_id: str) -> str:
    """Prefix of the output of a completed task, empty without one."""
    if not task_id:
        return ""
    query = select(TaskRow.output_prefix).where(
        TaskRow.id == task_id, TaskRow.state == State.COMPLETED, TaskRow.delete_time == 0
    )
    return await session.scalar(query) or ""
