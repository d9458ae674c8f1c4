"""Says for a person why a child ended without saying so itself."""

import contextlib
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from workerkit.endings import Failed
from workerkit.launcher import ChildExit

TAIL_CHARACTERS = 2_000
OOM_COUNTERS = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))


@dataclass(frozen=True, slots=True)
class Terms:
    """How people are told of a child: what it is, and what helps when memory runs out."""

    process: str
    memory_advice: Sequence[str] = ()

    def advice(self, sign: str) -> str:
        """The advice behind a sign, nothing where there is none."""
        return f"{sign}what helps: {'; '.join(self.memory_advice)}" if self.memory_advice else ""


def out_of_memory_kills() -> int:
    """How many processes the kernel has killed so far because memory ran out, in this group or on this machine."""
    for path in OOM_COUNTERS:
        with contextlib.suppress(OSError, ValueError):
            for line in path.read_text().splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
    return 0


def explain_crash(ended: ChildExit, tail: Sequence[str], terms: Terms, *, out_of_memory: bool) -> Failed:
    """The failure of a child that ended without a word; tail are the last lines of its log."""
    peak = f" at a peak of {ended.peak_memory / 2**30:.1f} GiB" if ended.peak_memory else ""
    process = f"the {terms.process}"
    if ended.launcher_lost:
        reason, message = "CHILD_KILLED", f"{process} was taken down together with the fork server"
    elif out_of_memory and ended.status == -signal.SIGKILL:
        reason = "OUT_OF_MEMORY"
        message = f"the machine ran out of memory and the kernel killed {process}{peak}{terms.advice('; ')}"
    elif ended.status == -signal.SIGKILL:
        reason = "CHILD_KILLED"
        why = f"often the machine ran out of memory{terms.advice(': ')}"
        message = f"{process} was killed by signal 9 (SIGKILL){peak}; {why}"
    elif ended.status < 0:
        reason, message = "CHILD_CRASHED", f"{process} was ended by signal {signal_name(-ended.status)}{peak}"
    else:
        reason, message = "CHILD_CRASHED", f"{process} ended with exit code {ended.status} and no result"
    return Failed(reason, message + with_tail(tail), retryable=True)


def explain_stall(seconds: float, tail: Sequence[str], terms: Terms) -> Failed:
    """The failure of a child that was killed because nothing came from it any more."""
    message = f"the {terms.process} gave no sign of life for {seconds:.0f} s and was killed"
    return Failed("CHILD_STALLED", message + with_tail(tail), retryable=True)


def signal_name(number: int) -> str:
    """A signal for people: "11 (SIGSEGV)"."""
    try:
        return f"{number} ({signal.Signals(number).name})"
    except ValueError:
        return str(number)


def with_tail(tail: Sequence[str]) -> str:
    """The last lines of a log as the end of a message."""
    text = "\n".join(line for line in tail if line.strip())[-TAIL_CHARACTERS:]
    return f"; its last lines:\n{text}" if text else ""
