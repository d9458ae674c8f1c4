"""Series of metrics for charts: the runs of a task on one axis, thinned out so that spikes stay visible."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import cast

from sqlalchemy import ColumnElement, Select, and_, func, or_, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from servicekit.identity import Principal
from task_service.database.access import Database
from task_service.database.models import MetricPointRow, TaskRow
from task_service.database.tasks import task_not_found, visible_to
from tunesmith.task.v1.task_service_pb2 import MetricSeries

DEFAULT_POINTS = 1000
LAST_STEP = 2**63 - 1

Points = dict[int, float]


@dataclass(frozen=True, slots=True)
class Part:
    """The steps of a metric that are one run's: from the first that it logged to the first of the next run."""

    run: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class MetricReader:
    """Reads points of metrics."""

    database: Database

    async def series(
        self,
        principal: Principal,
        task_id: str,
        *,
        names: Collection[str] = (),
        max_points: int = 0,
        after_step: int = 0,
    ) -> list[MetricSeries]:
        """Series of all metrics or those named, by name, steps ascending; each run goes up to where the next begins.

        At most max_points each (0: 1000), the first and the last among them, and of each span of steps the smallest
        and the largest value. after_step 0 means all steps. Raises NotFound.
        """
        limit = max(2, max_points or DEFAULT_POINTS)
        async with self.database.reading() as session:
            query = select(TaskRow.number).where(TaskRow.id == task_id, visible_to(principal))
            number = await session.scalar(query)
            if number is None:
                raise task_not_found(task_id)
            found = []
            for name, parts in (await _parts(session, number)).items():
                if not names or name in names:
                    metric = _Metric(session, number, name, parts, after_step)
                    found.append((name, await metric.points(limit)))
        return [
            MetricSeries(name=name, steps=points.keys(), values=points.values())
            for name, points in sorted(found)
            if points
        ]


async def _parts(session: AsyncSession, number: int) -> dict[str, list[Part]]:
    """The parts of each metric, newest run first. Hops along the primary key instead of reading all points."""
    runs: dict[str, list[tuple[int, int]]] = {}
    heads = (
        select(MetricPointRow.name, MetricPointRow.run, MetricPointRow.step)
        .where(MetricPointRow.task_number == number)
        .order_by(MetricPointRow.name, MetricPointRow.run, MetricPointRow.step)
        .limit(1)
    )
    head = (await session.execute(heads)).first()
    while head is not None:
        name, run, step = head
        runs.setdefault(name, []).append((run, step))
        after = tuple_(MetricPointRow.name, MetricPointRow.run) > tuple_(name, run)
        head = (await session.execute(heads.where(after))).first()
    return {name: _cut(heads_of_runs) for name, heads_of_runs in runs.items()}


def _cut(runs: Sequence[tuple[int, int]]) -> list[Part]:
    parts = []
    end = LAST_STEP
    for run, first in reversed(runs):
        if first <= end:
            parts.append(Part(run, first, end))
            end = first - 1
    return parts


class _Metric:
    """One metric of a task."""

    def __init__(self, session: AsyncSession, number: int, name: str, parts: Sequence[Part], after_step: int) -> None:
        self._session = session
        least = after_step + 1 if after_step > 0 else -LAST_STEP
        steps = [
            and_(MetricPointRow.run == part.run, MetricPointRow.step.between(max(part.first, least), part.last))
            for part in parts
        ]
        self._where = and_(MetricPointRow.task_number == number, MetricPointRow.name == name, or_(*steps))

    async def points(self, limit: int) -> Points:
        """Values by ascending step, at most so many."""
        step, value = MetricPointRow.step, MetricPointRow.value
        query = select(func.count(), func.count(value), func.min(step), func.max(step)).where(self._where)
        count, numbers, first, last = (await self._session.execute(query)).one()
        if count <= limit:
            return await self._pairs(select(step, value).where(self._where).order_by(step))
        ends = await self._pairs(select(step, value).where(self._where, step.in_([first, last])))
        # A span gives its smallest and its largest value, and a NaN if there are any.
        of_each = 2 if numbers == count else 3
        spans = (limit - 2) // of_each
        if spans:
            ends |= await self._extremes((step - first) * spans // (last - first + 1))
        return dict(sorted(ends.items()))

    async def _extremes(self, span: ColumnElement[int]) -> Points:
        """Of each span the smallest and the largest value and a NaN, each where it comes first.

        By window functions, because a join with the extremes is planned badly while statistics are old.
        """
        step, value = MetricPointRow.step, MetricPointRow.value
        low = func.min(value).over(partition_by=span).label("low")
        high = func.max(value).over(partition_by=span).label("high")
        spans = select(step, value, span.label("span"), low, high).where(self._where).subquery().c
        extreme = or_(spans.value == spans.low, spans.value == spans.high, spans.value.is_(None))
        return await self._pairs(
            select(func.min(spans.step), spans.value).where(extreme).group_by(spans.span, spans.value)
        )

    async def _pairs(self, query: Select[int, float | None]) -> Points:
        return {step: cast(float, value) for step, value in await self._session.execute(query)}
