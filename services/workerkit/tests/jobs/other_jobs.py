"""A child of no training: job.json says how it ends, and in which file it writes what."""

import json
import os
import signal
import time
from pathlib import Path

from workerkit.child import entry
from workerkit.child.errors import InvalidJob
from workerkit.child.events import EventWriter
from workerkit.child.failures import Outlook
from workerkit.child.stopping import StopRequest


def run(job_dir: Path) -> int:
    """Does the job in a directory."""
    return entry.run_job(job_dir, work, Outlook("EXPORT_FAILED", ("export a smaller model",)))


def work(job_dir: Path, events: EventWriter, stop: StopRequest) -> None:
    """Ends as the job says."""
    job = json.loads((job_dir / "job.json").read_text())
    events.started(step=0, total_steps=1)
    match job["end"]:
        case "done":
            output = job_dir / "output"
            output.mkdir()
            (output / job["name"]).write_text(job["content"])
            events.metrics(0, {"parity": 1.0})
            events.done(path=output, step=7)
        case "stopped":
            while not stop.requested:
                time.sleep(0.005)
            events.stopped(step=0)
        case "crashed":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "refused":
            raise InvalidJob("this cannot be exported", ["one thing", "another"])
        case "broken":
            raise RuntimeError("nobody expected this")
        case "memory":
            raise MemoryError
