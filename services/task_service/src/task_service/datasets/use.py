"""Uploaded datasets that tasks use: fit for it when the task is made, and kept until it has ended."""

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from servicekit.errors import FailedPrecondition, InvalidArgument, Problem
from servicekit.identity import Principal
from task_service.database.models import DatasetRow, TaskDatasetRow, TaskRow
from task_service.database.types import storable
from task_service.datasets.records import DatasetRepository, dataset_visible_to
from tunesmith.task.v1 import spec_pb2
from tunesmith.task.v1.task_service_pb2 import TaskSource

FIELDS = {"finetune": "dataset", "evaluate": "dataset", "export": "importance_dataset", "prepare": "dataset"}


def dataset_field(spec: spec_pb2.TaskSpec, source: TaskSource | None = None) -> tuple[str, str]:
    """The uploaded dataset that a spec needs and the path of the field that names it, both empty without one.

    An evaluation without data of its own needs that of its source.
    """
    work = spec.WhichOneof("work") or ""
    name = FIELDS.get(work, "")
    if not name:
        return "", ""
    part = getattr(spec, work)
    data: spec_pb2.DatasetSource = getattr(part, name)
    if data.HasField("dataset_id"):
        return data.dataset_id, f"spec.{work}.{name}.dataset_id"
    if work == "evaluate" and source is not None and not part.HasField(name):
        return source.spec.finetune.dataset.dataset_id, f"spec.{work}.{name}"
    return "", ""


async def dataset_problems(
    session: AsyncSession, principal: Principal, spec: spec_pb2.TaskSpec, source: TaskSource | None = None
) -> list[Problem]:
    """Why a task cannot use the dataset that its spec, or an evaluation's source, names."""
    dataset_id, field = dataset_field(spec, source)
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


async def use_dataset(
    session: AsyncSession,
    principal: Principal,
    row: TaskRow,
    spec: spec_pb2.TaskSpec,
    source: TaskSource | None = None,
) -> None:
    """Notes that a task needs its dataset. Raises InvalidArgument when that has been deleted meanwhile."""
    dataset_id, field = dataset_field(spec, source)
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
