"""Datasets in the database: versions, who may see them, which tasks use them."""

from collections.abc import Collection, Sequence

from sqlalchemy import ColumnElement, delete, select, true
from sqlalchemy.ext.asyncio import AsyncSession

from servicekit.errors import FailedPrecondition, NotFound
from servicekit.identity import Principal
from task_service.database.access import current_time
from task_service.database.models import DatasetRow, GarbageRow, TaskDatasetRow, TaskRow
from task_service.database.types import storable
from task_service.domain.lifecycle import FINAL

NAMED_TASKS = 5


def dataset_visible_to(principal: Principal) -> ColumnElement[bool]:
    """The condition that limits a query to what a caller may see: a user's own datasets, for others all."""
    return true() if principal.is_admin or principal.is_service else DatasetRow.owner == principal.user


def folder(dataset_id: str) -> str:
    """Prefix of a dataset's objects."""
    return f"datasets/{dataset_id}/"


class DatasetRepository:
    """Datasets within one session."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def get(self, principal: Principal, dataset_id: str, *, lock: bool = False) -> DatasetRow:
        """A dataset. Raises NotFound, also for somebody else's."""
        query = select(DatasetRow).where(DatasetRow.id == storable(dataset_id), dataset_visible_to(principal))
        row = await self._session.scalar(query.with_for_update() if lock else query)
        if row is None:
            raise NotFound(
                f"there is no dataset {dataset_id}", reason="DATASET_NOT_FOUND", metadata={"dataset_id": dataset_id}
            )
        return row

    async def shared(self, principal: Principal, dataset_ids: Collection[str]) -> dict[str, DatasetRow]:
        """Those of the datasets that the caller may use, kept from being deleted until this transaction ends."""
        query = select(DatasetRow).where(DatasetRow.id.in_(dataset_ids), dataset_visible_to(principal))
        rows = await self._session.scalars(query.order_by(DatasetRow.number).with_for_update(read=True))
        return {row.id: row for row in rows}

    async def versions(self, owner: str, name: str) -> list[DatasetRow]:
        """All versions of a name, oldest first."""
        query = select(DatasetRow).where(DatasetRow.owner == owner, DatasetRow.name == name)
        return list(await self._session.scalars(query.order_by(DatasetRow.version)))

    async def page(self, owner: str, *, kind: str, name: str, before: int, limit: int) -> list[DatasetRow]:
        """The owner's newest datasets with a number below before; 0 begins with the newest."""
        query = select(DatasetRow).where(DatasetRow.owner == owner)
        query = query.where(DatasetRow.number < before) if before else query
        query = query.where(DatasetRow.type == storable(kind)) if kind else query
        query = query.where(DatasetRow.name == storable(name)) if name else query
        return list(await self._session.scalars(query.order_by(DatasetRow.number.desc()).limit(limit)))

    async def delete(self, principal: Principal, dataset_id: str) -> None:
        """Removes a row and leaves its objects to the garbage collector. Raises NotFound, or FailedPrecondition."""
        row = await self.get(principal, dataset_id, lock=True)
        if users := await self._unfinished(dataset_id):
            more = ", ..." if len(users) > NAMED_TASKS else ""
            raise FailedPrecondition(
                f"dataset {dataset_id} is in use by {', '.join(users[:NAMED_TASKS])}{more}: "
                "wait for these tasks to end, or stop them",
                reason="DATASET_IN_USE",
                metadata={"dataset_id": dataset_id},
            )
        now = await current_time(self._session)
        await self._session.execute(delete(DatasetRow).where(DatasetRow.number == row.number))
        self._session.add(GarbageRow(prefix=folder(dataset_id), due_time=now))

    async def _unfinished(self, dataset_id: str) -> Sequence[str]:
        query = (
            select(TaskRow.id)
            .join(TaskDatasetRow, TaskDatasetRow.task_number == TaskRow.number)
            .where(
                TaskDatasetRow.dataset_id == dataset_id,
                TaskRow.delete_time == 0,
                TaskRow.state.not_in(sorted(FINAL)),
            )
            .order_by(TaskRow.number)
            .limit(NAMED_TASKS + 1)
        )
        return (await self._session.scalars(query)).all()
