"""Tables and statistics of the benchmarks."""

import os
import platform as machine
import statistics
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which a share (0 to 1) of the values lies; nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered)) - 1))]


def spread(values: Sequence[float]) -> str:
    """Median with the least and the greatest value."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints a table and the machine it was measured on."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column == columns[0] else "right")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    console = Console(width=120)
    console.print(table)
    console.print(f"{machine.machine()}, {os.cpu_count()} cores, Python {machine.python_version()}\n")


def verdict(value: float, limit: float, *, at_most: bool) -> str:
    """Whether a figure is reached."""
    reached = value <= limit if at_most else value >= limit
    return f"{'reached' if reached else 'NOT reached'} ({'at most' if at_most else 'at least'} {limit:g})"
