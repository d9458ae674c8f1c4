"""How a child is started and held; a cluster engine can take the place of the local fork server here."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

EVENTS_FD_VARIABLE = "TUNESMITH_EVENTS_FD"


@dataclass(frozen=True, slots=True)
class ChildExit:
    """How a child ended.

    status is its exit code, or the negative number of the signal that killed it. peak_memory is its largest resident
    size in bytes, 0 when unknown. launcher_lost: it was taken down by the death of what had started it.
    """

    status: int
    peak_memory: int = 0
    launcher_lost: bool = False


class LaunchError(Exception):
    """A child could not be started; another try may do better."""


class Child(Protocol):
    """A running child. Both streams yield lists of whole lines and end when the child has closed them."""

    @property
    def pid(self) -> int:
        """Its process id."""

    @property
    def events(self) -> AsyncIterator[list[bytes]]:
        """Lines of its event pipe."""

    @property
    def log(self) -> AsyncIterator[list[bytes]]:
        """Lines of its standard output and error."""

    def terminate(self) -> None:
        """Asks it to save what it can go on from, and end."""

    def kill(self) -> None:
        """Ends it and everything it has started, at once."""

    async def wait(self) -> ChildExit:
        """Waits until it has ended."""


class Launcher(Protocol):
    """Starts children."""

    async def start(self, job_dir: Path, env: Mapping[str, str]) -> Child:
        """Starts the job described in job_dir/job.json with env added to the environment. Raises LaunchError."""
