"""A group of processes: started in the order of their needs, kept running, stopped in reverse."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tunesmith_local.member import Member, Patience
from tunesmith_local.process import Program


class Supervisor:
    """Runs programs until it is told to stop.

    say gets a line for people when something happens; changed gets the members after each change of one. Raises
    ValueError for a program that needs an unknown one, or itself in the end.
    """

    def __init__(
        self,
        programs: Sequence[Program],
        log: Callable[[str], Path],
        *,
        say: Callable[[str], None],
        changed: Callable[[Sequence[Member]], None],
        patience: Patience,
    ) -> None:
        self._levels = levels(programs)
        self.members: list[Member] = []

        def on_change() -> None:
            changed(self.members)

        for level in self._levels:
            self.members += [Member(program, log(program.name), patience, say, on_change) for program in level]
        self._by_name = {member.program.name: member for member in self.members}

    async def run(self, stop: asyncio.Event, serving: Callable[[], None]) -> None:
        """Starts all, calls serving() when each serves, waits for stop, and stops all.

        Raises CannotStart when a program never comes to serve; all are stopped then too.
        """
        keepers = [asyncio.create_task(member.keep(self._needs(member))) for member in self.members]
        stopping = asyncio.create_task(stop.wait())
        all_serve = asyncio.create_task(self._all_served())
        try:
            await _first([*keepers, stopping, all_serve])
            if all_serve.done() and not stop.is_set():
                serving()
            await _first([*keepers, stopping])
        finally:
            await _cancelled([*keepers, stopping, all_serve])
            await self._stop()

    def kill(self) -> None:
        """Kills every process at once."""
        for member in self.members:
            if member.process is not None:
                member.process.kill()

    def _needs(self, member: Member) -> list[Member]:
        return [self._by_name[name] for name in member.program.depends_on]

    async def _all_served(self) -> None:
        for member in self.members:
            await member.served.wait()

    async def _stop(self) -> None:
        for level in reversed(self._levels):
            await asyncio.gather(*(self._by_name[program.name].stop() for program in level))


async def _first(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Waits until one of the tasks is done; raises what it raised."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


async def _cancelled(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def levels(programs: Sequence[Program]) -> list[list[Program]]:
    """Programs in the order of their needs: each needs only programs of lists before its own."""
    names = {program.name for program in programs}
    for program in programs:
        if missing := set(program.depends_on) - names:
            raise ValueError(f"{program.name} needs {', '.join(sorted(missing))}, which is not there")
    found: list[list[Program]] = []
    placed: set[str] = set()
    while len(placed) < len(names):
        level = [it for it in programs if it.name not in placed and placed.issuperset(it.depends_on)]
        if not level:
            raise ValueError(f"{', '.join(sorted(names - placed))} need each other")
        found.append(level)
        placed.update(program.name for program in level)
    return found
