"""Runs one job in this process; whatever happens ends as one last event."""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from workerkit.child import environment
from workerkit.child.events import EventWriter
from workerkit.child.failures import Outlook, describe
from workerkit.child.stopping import StopRequest
from workerkit.launcher import EVENTS_FD_VARIABLE

# Does the job in a directory; its last event is `done` or `stopped`, or it raises.
Job = Callable[[Path, EventWriter, StopRequest], None]


def run_job(directory: Path, job: Job, outlook: Outlook, descriptor: int | None = None) -> int:
    """Does the job in a directory; 0 when it is done or stopped, 1 after an error event."""
    stop = prepare()
    events = EventWriter(events_descriptor(descriptor))
    try:
        job(directory, events, stop)
    except Exception as error:  # noqa: BLE001 - it becomes the error event
        return fail(error, events, outlook)
    return 0


def prepare() -> StopRequest:
    """Sets the environment of the libraries and listens for a request to stop; only from the main thread."""
    environment.apply()
    stop = StopRequest()
    stop.listen()
    return stop


def events_descriptor(given: int | None = None) -> int:
    """Where events go: to what is given, else to what TUNESMITH_EVENTS_FD names, else to standard output."""
    return int(os.environ.get(EVENTS_FD_VARIABLE, "1")) if given is None else given


def fail(error: Exception, events: EventWriter, outlook: Outlook) -> int:
    """Tells why a job ended; the trace of what was not foreseen goes to standard error."""
    failure = describe(error, outlook)
    if failure.retryable:
        traceback.print_exception(error, file=sys.stderr)
    events.error(reason=failure.reason, message=failure.message, problems=failure.problems, retryable=failure.retryable)
    return 1


def main(package: str, run: Callable[[Path, int | None], int]) -> int:
    """`python -m PACKAGE JOB_DIR`: standard output is for events alone, what libraries print goes to standard error."""
    if len(sys.argv) != 2:
        print(f"usage: python -m {package} JOB_DIR", file=sys.stderr)
        return 2
    if EVENTS_FD_VARIABLE in os.environ:
        return run(Path(sys.argv[1]), None)
    events = os.dup(1)
    os.dup2(2, 1)
    return run(Path(sys.argv[1]), events)
