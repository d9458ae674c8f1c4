"""What the quota of a task's owner means for its checkpoints: store, hold back, or hold back and stop."""

import logging

from trainer_service.worker.allowance import Allowance
from tunesmith.task.v1 import spec_pb2
from workerkit.intent import Control, Intent, StopReason
from workerkit.reporter import Reporter

logger = logging.getLogger(__name__)

SPENT = StopReason(
    "QUOTA_EXHAUSTED",
    "the checkpoint quota is spent: resume the task when a new month begins or an administrator has raised it",
)


class QuotaGate:
    """Decides about the checkpoints of one attempt, and says so in its log once.

    A checkpoint that a stop or the worker's leaving asked for is always stored. When nothing is left, others are held
    back; if the quota wants tasks stopped then, the attempt is asked to save one last checkpoint and end, unless its
    training is complete anyway.
    """

    def __init__(self, allowance: Allowance, control: Control, reporter: Reporter) -> None:
        self._allowance = allowance
        self._control = control
        self._reporter = reporter
        self._told = False

    def begin(self, attempt: int, training: spec_pb2.TrainingParameters) -> None:
        """Ends a task before it starts whose first checkpoint would only end it; later attempts go on to theirs."""
        saves = training.save_strategy != spec_pb2.INTERVAL_STRATEGY_NO or training.save_interval_minutes > 0
        if attempt == 1 and saves and self._allowance.stops and not self._allowance.allows():
            self._control.ask(Intent.STOP_AND_SAVE, SPENT)

    def admits(self, step: int, waiting: int) -> bool:
        """Whether the checkpoint of a step may be stored; waiting are on their way already."""
        if self._control.intent >= Intent.RELEASE:
            return True
        if self._allowance.allows(waiting):
            if self._told:
                self._say("checkpoints are stored again: the quota has room")
            self._told = False
            return True
        if not self._told:
            self._say(self._warning(step))
        self._told = True
        if self._allowance.stops and not self._complete(step):
            self._control.ask(Intent.STOP_AND_SAVE, SPENT)
        return False

    def stored(self) -> None:
        """One more counts against the quota."""
        self._allowance.stored()

    def _complete(self, step: int) -> bool:
        return 0 < self._reporter.progress.total_steps <= step

    def _warning(self, step: int) -> str:
        spent = f"warning: the checkpoint quota is spent, checkpoint-{step} is not stored"
        if self._complete(step):
            return f"{spent}; the finished model is"
        if self._allowance.stops:
            return f"{spent}; one last checkpoint is saved and the task stops"
        return f"{spent}, nor are later ones; training goes on, and the finished model is kept"

    def _say(self, line: str) -> None:
        logger.warning("%s", line)
        self._reporter.log([line])
