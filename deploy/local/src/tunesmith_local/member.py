"""One member of the group: a program that is kept running."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith_local.errors import CannotStart
from tunesmith_local.files import last_lines
from tunesmith_local.process import Process, Program

LOG_LINES = 20


@dataclass(frozen=True)
class Patience:
    """How long things may take, in seconds.

    poll: between two questions whether a process serves; start: for it to serve; check: between two questions whether
    it has a fault; first, longest: before a dead one is
    started again, doubling from one to the other and anew once it served for calm. start_deaths before it ever served
    are too many; loop_deaths within loop_seconds are called a crash loop.
    """

    poll: float = 0.1
    start: float = 180.0
    first: float = 0.25
    longest: float = 10.0
    check: float = 5.0
    calm: float = 10.0
    start_deaths: int = 3
    loop_deaths: int = 5
    loop_seconds: float = 60.0


class Member:
    """A program and its present process. changed() is called after each change of pid, state or restarts."""

    def __init__(
        self,
        program: Program,
        log: Path,
        patience: Patience,
        say: Callable[[str], None],
        changed: Callable[[], None],
    ) -> None:
        self.program = program
        self.log = log
        self.state = "waiting"
        self.restarts = 0
        self.process: Process | None = None
        self.served = asyncio.Event()
        self._patience = patience
        self._say = say
        self._changed = changed
        self._deaths: deque[float] = deque(maxlen=max(patience.loop_deaths, patience.start_deaths))

    @property
    def pid(self) -> int:
        """Process id; 0 while none runs."""
        return self.process.pid if self.process is not None and self.process.running else 0

    async def keep(self, needs: Sequence["Member"]) -> None:
        """Runs the program again and again, until cancelled. Raises CannotStart when it never comes to serve."""
        for need in needs:
            await need.served.wait()
        delay = self._patience.first
        while True:
            end, was_calm = await self._live()
            self._check_first_start(end)
            delay = self._patience.first if was_calm else delay
            self._say(f"{self.program.name} {end}; starting it again in {delay:g} s")
            self._report_crash_loop()
            self._set("restarting")
            await asyncio.sleep(delay)
            delay = min(2 * delay, self._patience.longest)
            self.restarts += 1

    async def _live(self) -> tuple[str, bool]:
        """One process from start to end: how it ended, and whether it served for a good while before."""
        try:
            process = self.process = await Process.start(self.program, self.log)
        except OSError as error:
            if not self.served.is_set():
                raise CannotStart(f"{self.program.name}: {error}") from None
            return f"could not be started ({error})", False
        self._set("starting")
        serving_since = await self._served_by(process)
        end = await self._watched(process)
        now = time.monotonic()
        self._deaths.append(now)
        return end, serving_since is not None and now - serving_since >= self._patience.calm

    async def _served_by(self, process: Process) -> float | None:
        """Waits until the process serves, and since when; None when it ends before, or is too slow and was killed."""
        started = time.monotonic()
        while process.running:
            if await self.program.ready() and process.running:
                self._serves(time.monotonic() - started)
                return time.monotonic()
            if time.monotonic() - started > self._patience.start:
                if not self.served.is_set():
                    raise CannotStart(self._with_log(f"did not serve within {self._patience.start:g} s"))
                self._say(f"{self.program.name} did not serve within {self._patience.start:g} s and is killed")
                process.kill()
                return None
            await asyncio.sleep(self._patience.poll)
        return None

    async def _watched(self, process: Process) -> str:
        """Waits until a process has ended, and ends one that has a fault; why, for people."""
        ended = asyncio.ensure_future(process.ended())
        try:
            while self.program.fault is not None:
                await asyncio.wait((ended,), timeout=self._patience.check)
                if ended.done():
                    break
                if fault := await self.program.fault():
                    await process.stop()
                    return fault
            return await ended
        finally:
            ended.cancel()

    def _serves(self, seconds: float) -> None:
        if self.served.is_set():
            self._say(f"{self.program.name} serves again after {seconds:.1f} s")
        self.served.set()
        self._set("running")

    def _check_first_start(self, end: str) -> None:
        if not self.served.is_set() and len(self._deaths) >= self._patience.start_deaths:
            raise CannotStart(self._with_log(f"{end}, {len(self._deaths)} times in a row"))

    def _report_crash_loop(self) -> None:
        count = self._patience.loop_deaths
        if len(self._deaths) >= count and self._deaths[-1] - self._deaths[-count] <= self._patience.loop_seconds:
            seconds = self._deaths[-1] - self._deaths[-count]
            self._say(self._with_log(f"died {count} times within {seconds:.0f} s; it is tried further"))
            self._deaths.clear()

    def _with_log(self, text: str) -> str:
        lines = last_lines(self.log, LOG_LINES)
        return "\n".join([f"{self.program.name} {text}. The end of {self.log}:", *(f"  | {line}" for line in lines)])

    def _set(self, state: str) -> None:
        self.state = state
        self._changed()

    async def stop(self) -> None:
        """Ends the process, if one runs; the program must no longer be kept."""
        if self.process is not None and self.process.running:
            self._set("stopping")
            if await self.process.stop():
                self._say(f"{self.program.name} did not end within {self.program.stop_seconds:g} s and was killed")
        self._set("stopped")
