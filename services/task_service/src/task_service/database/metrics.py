"""Bulk insertion of metric points."""

import math
from collections.abc import Mapping

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from task_service.database.models import MetricPointRow

# Task number, name, run, step.
PointKey = tuple[int, str, int, int]
# Value, microseconds.
PointValue = tuple[float, int]


def _upsert(dialect: str) -> postgresql.Insert | sqlite.Insert:
    table = MetricPointRow.__table__
    statement = postgresql.insert(MetricPointRow) if dialect == "postgresql" else sqlite.insert(MetricPointRow)
    return statement.on_conflict_do_update(
        index_elements=list(table.primary_key),
        set_={"value": statement.excluded.value, "time": statement.excluded.time},
    )


_UPSERTS = {dialect: _upsert(dialect) for dialect in ("postgresql", "sqlite")}


async def store_points(session: AsyncSession, points: Mapping[PointKey, PointValue]) -> None:
    """Stores points; those that are there already take the new value."""
    if not points:
        return
    connection = await session.connection()
    # In the order of the key, so that neighbours land on the same page.
    rows = [
        {
            "task_number": key[0],
            "name": key[1],
            "run": key[2],
            "step": key[3],
            "value": None if math.isnan(points[key][0]) else points[key][0],
            "time": points[key][1],
        }
        for key in sorted(points)
    ]
    await connection.execute(_UPSERTS[connection.dialect.name], rows)
