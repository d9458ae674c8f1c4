"""Column types that mean the same on SQLite and PostgreSQL, and the database's own clock."""

# ruff: noqa: ARG001 - SQLAlchemy calls these with arguments that they do not need
import json
import math
from typing import Any

from sqlalchemy import BigInteger, Dialect, Double, Integer, Text, TypeDecorator
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

MICROSECONDS = 1_000_000

# SQLite counts rows with INTEGER keys only.
RowNumber = BigInteger().with_variant(Integer(), "sqlite")


def storable(text: str) -> str:
    """A text of a query without NUL characters, which PostgreSQL refuses; no text of the database has one."""
    return text.replace("\0", "\ufffd")


class Json(TypeDecorator[Any]):
    """A JSON value kept as text; unlike the databases' own types it keeps NaN, infinities and NUL characters."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str:
        return json.dumps(value, ensure_ascii=True, separators=(",", ":"))

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else json.loads(value)


class MetricValue(TypeDecorator[float]):
    """A float whose NaN is stored as NULL, because SQLite has no NaN."""

    impl = Double
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: Dialect) -> float | None:
        return None if value is None or math.isnan(value) else value

    def process_result_value(self, value: float | None, dialect: Dialect) -> float:
        return math.nan if value is None else value


class now(FunctionElement[int]):  # noqa: N801 - reads as the SQL function that it is
    """The database's clock in microseconds since 1970, as it is when the statement runs."""

    type = BigInteger()
    inherit_cache = True


@compiles(now, "sqlite")
def _now_sqlite(element: now, compiler: SQLCompiler, **options: Any) -> str:
    return "CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)"


@compiles(now, "postgresql")
def _now_postgresql(element: now, compiler: SQLCompiler, **options: Any) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)"
