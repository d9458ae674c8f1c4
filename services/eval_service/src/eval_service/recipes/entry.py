"""Runs one evaluation in this process; whatever happens ends as one last event."""

from pathlib import Path

from workerkit.child import entry
from workerkit.child.events import EventWriter
from workerkit.child.failures import Outlook
from workerkit.child.stopping import StopRequest

OUTLOOK = Outlook(
    unforeseen="EVALUATION_FAILED",
    memory_advice=("end other work on the machine", "score fewer samples", "generate fewer tokens"),
)


def run_job(directory: Path, descriptor: int | None = None) -> int:
    """Evaluates the job in a directory; 0 when it is done or stopped, 1 after an error event."""
    return entry.run_job(directory, _evaluate, OUTLOOK, descriptor)


def _evaluate(directory: Path, events: EventWriter, stop: StopRequest) -> None:
    from eval_service.recipes.evaluation import evaluate
    from eval_service.recipes.job import Job

    evaluate(Job.load(directory), events, stop)
