"""Runs a job as several data-parallel processes on this machine: forked from one that has everything imported.

torchrun starts each process from nothing, which takes 10 s for 0.2 s of work here, gives them 30 s to save after
SIGTERM, and leaves them behind when it is killed itself. Processes forked here start at once, take the time they need,
and die with their parent. A recipe that torchrun starts trains just as well: the variables that it sets are the same.
"""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from workerkit.child.stopping import SIGNALS

# Where the data-parallel processes of a job meet; set for each job that has several.
RENDEZVOUS = "TUNESMITH_RENDEZVOUS"
PR_SET_PDEATHSIG = 1
LAST_WORDS_SECONDS = 5.0
POLL_SECONDS = 0.02

# Called in each process with its rank and a descriptor for an error event; returns the exit code.
RankMain = Callable[[int, int], int]


def own_rank() -> int | None:
    """This process's place among those of a job, None when it is to start them itself."""
    rank = os.environ.get("RANK")
    return None if rank is None else int(rank)


def run(size: int, rank_main: RankMain, folder: Path) -> int:
    """Forks size processes and waits for them; 0 when all did well.

    SIGTERM and SIGINT are passed on to all of them; they are blocked in each until it listens. When one fails the
    others are ended. folder is for what they exchange.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    running: set[int] = set()

    def pass_on(number: int, _frame: FrameType | None) -> None:
        for pid in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    for rank in range(size):
        running.add(_fork(rank, size, folder, rank_main))
    for number in SIGNALS:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    return _reap(running)


def first_error(folder: Path) -> dict[str, Any] | None:
    """The earliest error event that a process left; those after it are mostly its consequences."""
    found: list[dict[str, Any]] = []
    for path in folder.glob("*.error"):
        with contextlib.suppress(OSError, ValueError):
            found.append(json.loads(path.read_bytes()))
    return min(found, key=lambda event: float(event["time"]), default=None)


def _fork(rank: int, size: int, folder: Path, rank_main: RankMain) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() == parent:
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
            os.environ.update({name: str(value) for name, value in place.items()})
            os.environ[RENDEZVOUS] = f"file://{folder.resolve()}/rendezvous"
            code = rank_main(rank, os.open(folder / f"{rank}.error", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC))
    except BaseException:  # noqa: BLE001 - the process must end here, whatever happened
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _reap(running: set[int]) -> int:
    """Waits for all; after one has failed the others have little time left, for they would wait for it for ever."""
    worst, deadline = 0, 0.0
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG if worst else 0)
        running.discard(pid)
        if pid and (code := os.waitstatus_to_exitcode(status)) and not worst:
            worst, deadline = code, time.monotonic() + LAST_WORDS_SECONDS
        if not pid and time.monotonic() > deadline:
            for other in running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(other, signal.SIGKILL)
        if not pid:
            time.sleep(POLL_SECONDS)
    return worst
