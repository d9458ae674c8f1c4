"""The file that says which processes run, and the end of those that a killed supervisor left behind."""

import json
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from tunesmith_local.files import write_whole
from tunesmith_local.member import Member

LEFTOVER_SECONDS = 10.0


def recorder(path: Path, url: str) -> Callable[[Sequence[Member]], None]:
    """Writes what the members are doing to a file at each call; a full disk costs the file, not the platform."""

    def record(members: Sequence[Member]) -> None:
        processes = [
            {
                "name": member.program.name,
                "pid": member.pid,
                "created": _created(member.pid),
                "port": member.program.port,
                "state": member.state,
                "restarts": member.restarts,
                "log": str(member.log),
            }
            for member in members
        ]
        document = {"pid": os.getpid(), "url": url, "processes": processes}
        with suppress(OSError):
            write_whole(path, json.dumps(document, indent=2) + "\n")

    return record


def end_leftovers(path: Path) -> list[str]:
    """Kills what still runs of the processes that the file names; their names. For the holder of the lock only."""
    try:
        entries = json.loads(path.read_text())["processes"]
    except (OSError, ValueError, KeyError):
        return []
    found = [
        (entry["name"], process) for entry in entries if (process := _same(entry.get("pid"), entry.get("created")))
    ]
    for _, process in found:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    psutil.wait_procs([process for _, process in found], LEFTOVER_SECONDS)
    return [name for name, _ in found]


def _created(pid: int) -> float | None:
    try:
        return psutil.Process(pid).create_time() if pid else None
    except psutil.Error:
        return None


def _same(pid: int | None, created: float | None) -> psutil.Process | None:
    """The running process with this id, if it is the one that was created then and no later one."""
    if not pid or created is None:
        return None
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - created) < 0.01 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return None
    return process if same else None
