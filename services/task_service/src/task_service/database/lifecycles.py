"""Moves the life cycle between its row and the domain."""

from dataclasses import fields

from task_service.database.models import TaskRow
from task_service.domain.lifecycle import Lifecycle, State, StopMode

_NAMES = tuple(field.name for field in fields(Lifecycle))


def load(row: TaskRow) -> Lifecycle:
    """The life cycle of a task, apart from its row."""
    values = {name: getattr(row, name) for name in _NAMES}
    values |= {"state": State(row.state), "stop_mode": StopMode(row.stop_mode)}
    values["error_problems"] = list(row.error_problems)
    return Lifecycle(**values)


def store(lifecycle: Lifecycle, row: TaskRow) -> None:
    """Writes back what changed."""
    for name in _NAMES:
        value = getattr(lifecycle, name)
        value = int(value) if name in ("state", "stop_mode") else value
        if getattr(row, name) != value:
            setattr(row, name, value)
