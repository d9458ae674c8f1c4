"""A task that is about to be: how it would look, and its rows."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from task_service.database import lifecycles
from task_service.database.access import current_time
from task_service.database.listing import label_digest
from task_service.database.models import TaskDependencyRow, TaskLabelRow, TaskRow, TaskSpecRow, UserRow
from task_service.defaults import Sources
from task_service.domain.lifecycle import Lifecycle, State
from task_service.events import KIND_WORDS
from task_service.ids import new_id
from tunesmith.task.v1 import spec_pb2, task_pb2, task_service_pb2

DEFAULT_POOL = "default"

_KIND_OF_WORD = {word: kind for kind, word in KIND_WORDS.items()}


@dataclass(frozen=True, slots=True)
class NewTask:
    """What was asked for, with its spec filled in and where each value comes from; fingerprint is the request's."""

    owner: str
    request: task_service_pb2.CreateTaskRequest
    spec: spec_pb2.TaskSpec
    sources: Sources
    fingerprint: str

    def preview(self, depends_on: Sequence[str]) -> task_pb2.Task:
        """The task as it would be, without an id."""
        task = task_pb2.Task(
            name=self.request.name,
            description=self.request.description,
            owner=self.owner,
            kind=self._kind(),
            spec=self.spec,
            state=task_pb2.STATE_PENDING,
            run=1,
            depends_on=depends_on,
            labels=self.request.labels,
            pool=self.request.pool or DEFAULT_POOL,
        )
        for path, source in self.sources.items():
            task.parameter_sources[path] = task_pb2.ParameterSource.ValueType(source)
        return task

    async def insert(self, session: AsyncSession, depends_on: Sequence[str]) -> TaskRow:
        """Its row, with those that go with it."""
        owner_number = await _user_number(session, self.owner)
        row = self._row(await current_time(session))
        session.add(row)
        await session.flush()
        labels = self.request.labels
        session.add(
            TaskSpecRow(
                task_number=row.number,
                spec=self.spec.SerializeToString(),
                parameter_sources=self.sources,
                labels=dict(labels),
                depends_on=list(depends_on),
                owner_number=owner_number,
            )
        )
        session.add_all(
            TaskLabelRow(task_number=row.number, digest=label_digest(key, value)) for key, value in labels.items()
        )
        session.add_all(
            TaskDependencyRow(task_number=row.number, position=position, depends_on=task_id)
            for position, task_id in enumerate(depends_on)
        )
        await session.flush()
        return row

    def _row(self, now: int) -> TaskRow:
        request = self.request
        row = TaskRow(
            id=new_id(),
            owner=self.owner,
            name=request.name,
            description=request.description,
            kind=self._kind(),
            base_model=self.spec.finetune.base_model,
            pool=request.pool or DEFAULT_POOL,
            request_id=request.request_id or None,
            request_hash=self.fingerprint,
            state=State.PENDING.value,
            create_time=now,
            update_time=now,
        )
        lifecycles.store(Lifecycle(), row)
        return row

    def _kind(self) -> task_pb2.Kind.ValueType:
        return _KIND_OF_WORD[self.spec.WhichOneof("work") or ""]


async def _user_number(session: AsyncSession, name: str) -> int:
    """The number of a user, given at the first task."""
    wanted = select(UserRow.number).where(UserRow.name == name)
    number = await session.scalar(wanted)
    if number is None:
        try:
            async with session.begin_nested():
                await session.execute(insert(UserRow).values(name=name))
        except IntegrityError:
            pass  # the user's other first task was faster
        number = (await session.scalars(wanted)).one()
    return number
