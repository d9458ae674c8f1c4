"""A bar for a file on its way, where there is a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from tunesmith.cli import text


@contextmanager
def transfer_bar(console: Console, name: str) -> Iterator[Callable[[int, int], None]]:
    """Shows how far a file is; what it yields takes the bytes that are through and those in all, 0 if unknown."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        row = bar.add_task(text.harmless(name), total=None)

        def show(done: int, size: int) -> None:
            bar.update(row, completed=done, total=size or None)

        yield show
