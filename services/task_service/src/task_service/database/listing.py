"""Pages of tasks: filters, orders, and tokens that name the last task seen instead of counting."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from servicekit.identity import Principal
from task_service.database.models import TaskLabelRow, TaskRow, TaskSourceRow
from task_service.database.paging import DEFAULT_PAGE_SIZE, digest, page_token, parse_page_token
from task_service.database.tasks import KINDS_WITH_SOURCE, visible_to
from task_service.database.types import storable

# By TaskOrder of the proto. Numbers are given in the order of creation.
ORDERS: dict[int, InstrumentedAttribute[Any] | None] = {
    0: None,
    1: None,
    2: TaskRow.update_time,
    3: TaskRow.name,
    4: TaskRow.start_time,
}


@dataclass(frozen=True, slots=True)
class TaskQuery:
    """Which tasks, in which order; empty filters let everything pass."""

    states: Sequence[int] = ()
    kinds: Sequence[int] = ()
    name_contains: str = ""
    base_model_contains: str = ""
    keyword: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    source_task_id: str = ""
    order_by: int = 0
    ascending: bool = False

    @property
    def digest(self) -> str:
        """Stands for the query in page tokens, which hold for it alone."""
        values = asdict(self) | {"states": sorted(set(self.states)), "kinds": sorted(set(self.kinds))}
        return digest(values | {"labels": dict(self.labels)})


@dataclass(frozen=True, slots=True)
class TaskPage:
    """A page, the token of the next one or "", and the number of all tasks that match if it was asked for."""

    rows: list[TaskRow]
    next_page_token: str = ""
    total: int = 0


async def list_tasks(
    session: AsyncSession,
    principal: Principal,
    query: TaskQuery,
    *,
    page_size: int = 0,
    page_token: str = "",
    offset: int = 0,
    with_total: bool = False,
) -> TaskPage:
    """A page of the tasks that the caller may see. Raises InvalidArgument for a token of another query."""
    size = page_size or DEFAULT_PAGE_SIZE
    conditions = _conditions(principal, query)
    statement = _ordered(select(TaskRow).where(*conditions), query)
    if page_token:
        statement = statement.where(_after(query, *_parse(page_token, query)))
    rows = list(await session.scalars(statement.offset(offset or None).limit(size + 1)))
    token = _token(query, rows[size - 1]) if len(rows) > size else ""
    total = await session.scalar(select(func.count()).select_from(TaskRow).where(*conditions)) if with_total else 0
    return TaskPage(rows[:size], token, total or 0)


def _conditions(principal: Principal, query: TaskQuery) -> list[ColumnElement[bool]]:
    conditions = [visible_to(principal)]
    if query.states:
        conditions.append(TaskRow.state.in_(query.states))
    if query.kinds:
        conditions.append(TaskRow.kind.in_(query.kinds))
    if query.name_contains:
        conditions.append(_contains(TaskRow.name, query.name_contains))
    if query.base_model_contains:
        conditions.append(_contains(TaskRow.base_model, query.base_model_contains))
    if query.keyword:
        conditions.append(_contains(TaskRow.name, query.keyword) | _contains(TaskRow.description, query.keyword))
    for key, value in query.labels.items():
        labelled = select(TaskLabelRow.task_number).where(TaskLabelRow.digest == label_digest(key, value))
        conditions.append(TaskRow.number.in_(labelled))
    if query.source_task_id:
        started = select(TaskSourceRow.task_number).where(
            TaskSourceRow.source_id == storable(query.source_task_id), TaskSourceRow.position == 0
        )
        conditions += [TaskRow.number.in_(started), TaskRow.kind.in_(KINDS_WITH_SOURCE)]
    return conditions


def label_digest(key: str, value: str) -> str:
    """What is stored of a label for filters: 128 bits that stand for key and value."""
    return hashlib.sha256(json.dumps([key, value]).encode()).hexdigest()[:32]


def _contains(column: InstrumentedAttribute[str], text: str) -> ColumnElement[bool]:
    """Whatever the case; % and _ stand for themselves. No text of the database has a NUL."""
    return column.icontains(text.replace("\0", "\ufffd"), autoescape=True)


def _ordered(statement: Select[TaskRow], query: TaskQuery) -> Select[TaskRow]:
    column = ORDERS[query.order_by]
    columns = [TaskRow.number] if column is None else [column, TaskRow.number]
    return statement.order_by(*(item.asc() if query.ascending else item.desc() for item in columns))


def _after(query: TaskQuery, key: Any, number: int) -> ColumnElement[bool]:
    column = ORDERS[query.order_by]
    if column is None:
        return TaskRow.number > number if query.ascending else TaskRow.number < number
    here, there = tuple_(column, TaskRow.number), tuple_(key, number)
    return here > there if query.ascending else here < there


def _token(query: TaskQuery, last: TaskRow) -> str:
    column = ORDERS[query.order_by]
    return page_token(query.digest, None if column is None else getattr(last, column.key), last.number)


def _parse(token: str, query: TaskQuery) -> tuple[Any, int]:
    column = ORDERS[query.order_by]
    expected: type = type(None) if column is None else str if column is TaskRow.name else int
    key, number = parse_page_token(token, query.digest, expected, int)
    return key, number
