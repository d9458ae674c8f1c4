"""Children that do one thing each, for tests of the fork server. Every job.json names its own function."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path


def run(job_dir: Path) -> int:
    """Runs the function that the job names."""
    job = json.loads((job_dir / "job.json").read_text())
    result = globals()[job["do"]](job)
    return int(result or 0)


def emit(**event: object) -> None:
    os.write(int(os.environ["TUNESMITH_EVENTS_FD"]), json.dumps(event).encode() + b"\n")


def report(job: dict[str, object]) -> None:
    print("to stdout")
    print("to stderr", file=sys.stderr)
    emit(
        pid=os.getpid(),
        group=os.getpgrp(),
        session=os.getsid(0),
        cwd=str(Path.cwd()),
        color=os.environ.get("COLOR"),
        variables=list(os.environ),
        stdin=str(Path("/proc/self/fd/0").readlink()),
        oom=int(Path("/proc/self/oom_score_adj").read_text()),
        core=resource.getrlimit(resource.RLIMIT_CORE)[0],
        descriptors=[entry.name for entry in Path("/proc/self/fd").iterdir()],
    )


def leave(job: dict[str, object]) -> int:
    return int(str(job["code"]))


def burst(job: dict[str, object]) -> None:
    for number in range(20_000):
        emit(n=number)
        print("x" * 100)


def fail(job: dict[str, object]) -> None:
    raise RuntimeError("something broke")


def hang(job: dict[str, object]) -> None:
    emit(pid=os.getpid())
    stay()


def stay() -> None:
    """Says nothing more: whoever has read the first event may have closed the pipe."""
    while True:
        time.sleep(60)


def family(job: dict[str, object]) -> None:
    """Starts a process in its own session, as torchrun does, and one in this group, and hangs."""
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    apart = subprocess.Popen(command, start_new_session=True)
    near = subprocess.Popen(command)
    emit(pid=os.getpid(), apart=apart.pid, near=near.pid)
    stay()


def orderly(job: dict[str, object]) -> None:
    """Ends in order when it is asked to."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    hang(job)


def big(job: dict[str, object]) -> None:
    data = bytearray(200 << 20)
    data[::4096] = b"x" * len(data[::4096])
