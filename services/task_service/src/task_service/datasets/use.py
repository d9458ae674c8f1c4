"""Uploaded datasets that tasks train on: fit for it when the task is made, and kept until it has ended."""

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from servicekit.errors import FailedPrecondition, InvalidArgument, Problem
from servicekit.identity import Principal
from task_service.database.models import DatasetRow, TaskDatasetRow, TaskRow
from task_service.database.types import storable
from task_service.datasets.records import DatasetRepository, dataset_visible_to
from tunesmith.task.v1 import spec_pb2


def dataset_field(spec: spec_pb2.TaskSpec) -> tuple[str, str]:
    """The uploaded dataset that a spec names and the path of that field, both empty without one."""
    work = spec.WhichOneof("work")
    if work in ("finetune", "evaluate", "prepare"):
        source: spec_pb2.DatasetSource = getattr(spec, work).dataset
        if source.HasField("dataset_id"):
            return source.dataset_id, f"spec.{work}.dataset.dataset_id"
    return "", ""


async def dataset_problems(session: AsyncSession, principal: Principal, spec: spec_pb2.TaskSpec) -> list[Problem]:
    """Why a task cannot train on the dataset that its spec names."""
    dataset_id, field = dataset_field(spec)
    if not dataset_id:
        return []
    query = select(DatasetRow).where(DatasetRow.id == storable(dataset_id), dataset_visible_to(principal))
    row = await session.scalar(query)
    if row is None:
        return [Problem(field, f"there is no dataset {dataset_id}")]
    if row.problems:
        found = "; ".join(row.problems)
        return [Problem(field, f"{row.name}, version {row.version}, has problems, upload it corrected: {found}")]
    return []


async def use_dataset(session: AsyncSession, principal: Principal, row: TaskRow, spec: spec_pb2.TaskSpec) -> None:
    """Notes that a task needs its dataset. Raises InvalidArgument when that has been deleted meanwhile."""
    dataset_id, field = dataset_field(spec)
    if not dataset_id:
        return
    if not await DatasetRepository(session).shared(principal, [dataset_id]):
        raise InvalidArgument(problems=[Problem(field, f"there is no dataset {dataset_id}")])
    session.add(TaskDatasetRow(task_number=row.number, dataset_id=dataset_id))


async def require_dataset(session: AsyncSession, principal: Principal, row: TaskRow) -> None:
    """Raises FailedPrecondition when the dataset of a task that is to run again is gone."""
    query = select(TaskDatasetRow.dataset_id).where(TaskDatasetRow.task_number == row.number)
    needed = list(await session.scalars(query))
    if needed and len(await DatasetRepository(session).shared(principal, needed)) < len(needed):
        raise FailedPrecondition(
            f"its dataset {', '.join(needed)} was deleted: upload it again and create a new task",
            reason="DATASET_DELETED",
        )
