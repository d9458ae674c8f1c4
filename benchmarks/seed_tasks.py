"""Copies one task many times, straight in the database of a platform, for benchmarks of lists."""

import sqlite3
from contextlib import closing
from pathlib import Path

NEW_NUMBERS = """
    WITH RECURSIVE counter(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM counter WHERE value < :count)
    INSERT INTO {table} ({columns}) SELECT {values} FROM {table} AS original, counter WHERE {match}
"""


def seed_tasks(data_dir: Path, task_id: str, count: int) -> None:
    """Adds count copies of a task, each with a number and id of its own."""
    database = next(data_dir.glob("**/*.db"))
    with closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        number, last = connection.execute(
            "SELECT number, (SELECT max(number) FROM tasks) FROM tasks WHERE id = ?", (task_id,)
        ).fetchone()
        own = {"number": f"{last} + value", "id": "printf('seed%022d', value)", "request_id": "NULL"}
        copy_rows(connection, "tasks", f"original.number = {number}", own, count)
        copy_rows(connection, "task_specs", f"task_number = {number}", {"task_number": f"{last} + value"}, count)
        connection.execute("ANALYZE")


def copy_rows(connection: sqlite3.Connection, table: str, match: str, own: dict[str, str], count: int) -> None:
    columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    values = [own.get(column, f"original.{column}") for column in columns]
    statement = NEW_NUMBERS.format(table=table, columns=", ".join(columns), values=", ".join(values), match=match)
    connection.execute(statement, {"count": count})
