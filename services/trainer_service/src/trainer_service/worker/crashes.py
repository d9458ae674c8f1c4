"""Says for a person why a training process ended without saying so itself."""

import contextlib
import signal
from collections.abc import Sequence
from pathlib import Path

from trainer_service.launcher import ChildExit
from trainer_service.recipes.remedies import OUT_OF_MEMORY
from trainer_service.worker.endings import Failed

TAIL_CHARACTERS = 2_000
MEMORY_ADVICE = f"what helps: {'; '.join(OUT_OF_MEMORY)}"
OOM_COUNTERS = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))


def out_of_memory_kills() -> int:
    """How many processes the kernel has killed so far because memory ran out, in this group or on this machine."""
    for path in OOM_COUNTERS:
        with contextlib.suppress(OSError, ValueError):
            for line in path.read_text().splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
    return 0


def explain_crash(ended: ChildExit, tail: Sequence[str], *, out_of_memory: bool) -> Failed:
    """The failure of a child that ended without a word; tail are the last lines of its log."""
    peak = f" at a peak of {ended.peak_memory / 2**30:.1f} GiB" if ended.peak_memory else ""
    if ended.launcher_lost:
        reason, message = "CHILD_KILLED", "the training process was taken down together with the fork server"
    elif out_of_memory and ended.status == -signal.SIGKILL:
        reason = "OUT_OF_MEMORY"
        message = f"the machine ran out of memory and the kernel killed the training process{peak}; {MEMORY_ADVICE}"
    elif ended.status == -signal.SIGKILL:
        reason = "CHILD_KILLED"
        message = (
            f"the training process was killed by signal 9 (SIGKILL){peak}; "
            f"often the machine ran out of memory: {MEMORY_ADVICE}"
        )
    elif ended.status < 0:
        reason, message = (
            "CHILD_CRASHED",
            f"the training process was ended by signal {signal_name(-ended.status)}{peak}",
        )
    else:
        reason, message = "CHILD_CRASHED", f"the training process ended with exit code {ended.status} and no result"
    return Failed(reason, message + with_tail(tail), retryable=True)


def explain_stall(seconds: float, tail: Sequence[str]) -> Failed:
    """The failure of a child that was killed because nothing came from it any more."""
    message = f"the training process gave no sign of life for {seconds:.0f} s and was killed"
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
