"""Bulk insertion of metric points, in each database's fastest way."""

import math
from collections.abc import Mapping

from sqlalchemy.ext.asyncio import AsyncSession

# Task number, name, run, step.
PointKey = tuple[int, str, int, int]
# Value, microseconds.
PointValue = tuple[float, int]

SQLITE = """
INSERT INTO metric_points (task_number, name, run, step, value, time) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (task_number, name, run, step) DO UPDATE SET value = excluded.value, time = excluded.time
"""
# The columns travel as six arrays.
POSTGRESQL = """
INSERT INTO metric_points (task_number, name, run, step, value, time)
SELECT * FROM unnest($1::bigint[], $2::text[], $3::integer[], $4::bigint[], $5::float8[], $6::bigint[])
ON CONFLICT (task_number, name, run, step) DO UPDATE SET value = excluded.value, time = excluded.time
"""


async def store_points(session: AsyncSession, points: Mapping[PointKey, PointValue]) -> None:
    """Stores points; those that are there already take the new value."""
    if not points:
        return
    # In the order of the key, so that neighbours land on the same page. NaN is stored as NULL, see MetricValue.
    rows = [(*key, None if math.isnan(points[key][0]) else points[key][0], points[key][1]) for key in sorted(points)]
    await session.flush()
    connection = await session.connection()
    if connection.dialect.name == "postgresql":
        columns = tuple(list(column) for column in zip(*rows, strict=True))
        await connection.exec_driver_sql(POSTGRESQL, columns)
    else:
        await connection.exec_driver_sql(SQLITE, rows)
