"""One child process that cannot outlive its supervisor."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

LAUNCH = Path(__file__).with_name("launch.py")
LOG_BYTES = 10 * 1024 * 1024


@dataclass(frozen=True)
class Program:
    """A row of the process table: what runs, what it needs running first, and how to ask whether it serves.

    fault tells why a process that serves must be started again all the same, empty while nothing is wrong.
    """

    name: str
    command: tuple[str, ...]
    ready: Callable[[], Awaitable[bool]]
    environment: Mapping[str, str] = field(default_factory=dict)
    port: int | None = None
    depends_on: tuple[str, ...] = ()
    stop_seconds: float = 15.0
    fault: Callable[[], Awaitable[str]] | None = None


class Process:
    """A running program, in a process group of its own: Ctrl-C at the terminal reaches the supervisor alone."""

    def __init__(self, program: Program, child: asyncio.subprocess.Process) -> None:
        self.name = program.name
        self.pid = child.pid
        self._stop_seconds = program.stop_seconds
        self._child = child

    @classmethod
    async def start(cls, program: Program, log: Path) -> Self:
        """Starts a program; what it prints is added to its log. Raises OSError."""
        rotate(log)
        with log.open("ab") as output:
            child = await asyncio.create_subprocess_exec(
                *dying_with_us(program.command),
                env={**os.environ, **program.environment},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        return cls(program, child)

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._child.returncode is None

    async def ended(self) -> str:
        """Waits for the end; how it ended, for people."""
        return describe_end(await self._child.wait())

    async def stop(self) -> bool:
        """Asks it to end and kills it when it does not in time; whether it had to be killed."""
        if self.running:
            self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(self._stop_seconds):
                await self._child.wait()
        except TimeoutError:
            self.kill()
            await self._child.wait()
            return True
        return False

    def kill(self) -> None:
        """Kills it and its process group at once."""
        if self.running:
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        try:
            self._child.send_signal(number)
        except ProcessLookupError:
            return


def dying_with_us(command: Sequence[str]) -> list[str]:
    """The command, wrapped so that the kernel kills it when the thread that starts it ends."""
    return [sys.executable, "-I", "-S", str(LAUNCH), str(os.getpid()), *command]


def describe_end(code: int) -> str:
    """For example "was killed by SIGKILL" or "exited with 3"."""
    if code >= 0:
        return f"exited with {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def rotate(log: Path) -> None:
    """Puts a log that has grown large aside, in place of the one put aside before."""
    if log.exists() and log.stat().st_size > LOG_BYTES:
        log.replace(log.with_name(f"{log.name}.1"))
