"""Notices a process that hangs: it has something to do, and neither speaks nor works."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

MOST_TICK_SECONDS = 1.0
# Fields of /proc/PID/stat after the name (proc(5)): minor and major page faults, user and system time.
WORK_FIELDS = (7, 9, 11, 12)


async def until_stalled(signs: Callable[[], object], seconds: float) -> None:
    """Returns when signs() has not changed for so long.

    Silence is counted in ticks, so that a pause of this service itself does not count as silence of the process.
    """
    tick = min(MOST_TICK_SECONDS, seconds / 10)
    silence, seen = 0.0, signs()
    while silence < seconds:
        await asyncio.sleep(tick)
        now = signs()
        silence = silence + tick if now == seen else 0.0
        seen = now


def work_done(pid: int) -> tuple[int, ...]:
    """What a process has done so far, in numbers that grow when it computes or reads memory; empty when it is gone."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return tuple(int(fields[place]) for place in WORK_FIELDS)
    return ()
