"""What a worker does with the estimate of a training: tells it, refuses what cannot end well, learns from the run."""

import time
from dataclasses import replace

from trainer_service.estimates.advice import memory_notes
from trainer_service.estimates.disk import LOCAL_CHECKPOINTS
from trainer_service.estimates.estimator import Estimate, Estimator
from trainer_service.words import size
from workerkit.child_events import Measured
from workerkit.endings import AttemptError, Failed
from workerkit.reporter import Reporter

MEMORY_METRIC = "memory_predicted_bytes"


def predict(estimate: Estimate, reporter: Reporter, step: int) -> None:
    """Says in the log and as a metric how much memory the training will need, and what helps when that is too much."""
    memory = estimate.memory
    parts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimiser": memory.optimizer,
        "activations": memory.activations,
        "other": memory.overhead,
    }
    listed = ", ".join(f"{name} {size(count)}" for name, count in parts.items())
    lines = [f"predicted memory: {size(memory.total)} of {size(estimate.device.memory_total)} ({listed})"]
    lines += [f"warning: {note}" for note in memory_notes(estimate)]
    reporter.log(lines)
    reporter.measured(Measured(step, {MEMORY_METRIC: float(memory.total)}, time.time()))


def require_room(estimate: Estimate) -> None:
    """Raises AttemptError when there is no room for what training writes before anything of it can be removed."""
    sizes = estimate.files
    least = min(estimate.saved, LOCAL_CHECKPOINTS) * sizes.checkpoint + sizes.output
    lacking = [room for room in estimate.rooms if room.free < min(least, room.needed)]
    if lacking:
        room = lacking[0]
        message = (
            f"{size(min(least, room.needed))} are needed in {room.path} for checkpoints and the finished model, "
            f"{size(room.free)} are free; free space and resume the task"
        )
        raise AttemptError(Failed("DISK_FULL", message))


def record_pace(estimator: Estimator, estimate: Estimate, steps_per_second: float) -> None:
    """Remembers how fast the training was, for the estimates of later ones. Writes a file."""
    estimator.calibration.record(replace(estimate.run, steps_per_second=steps_per_second))
