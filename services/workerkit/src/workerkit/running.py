"""What the work of every kind does with its child: start it, watch it, and say what its end means."""

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tunesmith.events.v1 import fact_pb2 as facts
from workerkit import child_events as events
from workerkit import crashes
from workerkit.child_events import CheckpointWritten
from workerkit.crashes import Terms
from workerkit.endings import AttemptError, Ending, Failed, Released, Stopped
from workerkit.intent import Control, Intent, Interrupted
from workerkit.launcher import Launcher, LaunchError
from workerkit.lease import Lease
from workerkit.reporter import Reporter
from workerkit.supervision import ChildResult, Patience, Supervision

GRACE_LABEL = "stop_grace_seconds"
LONGEST_GRACE_SECONDS = 3600.0
NOTHING_TO_SAVE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class ChildRun:
    """How the child of one attempt is run and judged."""

    launcher: Launcher
    control: Control
    lease: Lease
    reporter: Reporter
    patience: Patience
    terms: Terms

    async def run(
        self,
        job_dir: Path,
        environment: Mapping[str, str],
        on_checkpoint: Callable[[CheckpointWritten], None] | None = None,
        *,
        resumed_step: int = 0,
    ) -> ChildResult:
        """Runs the job in a directory to the end of its child, which is gone then whatever happened.

        AttemptError when no child can be started, Interrupted when the worker leaves before.
        """
        self.reporter.phase("starting")
        kills = crashes.out_of_memory_kills()
        try:
            child = await self.control.unless(Intent.RELEASE, self.launcher.start(job_dir, environment))
        except LaunchError as error:
            raise AttemptError(Failed("LAUNCH_FAILED", str(error), retryable=True)) from error
        self.lease.pid = child.pid
        self.lease.nudge()
        self.reporter.fact(facts.Fact(child_started=facts.ChildStarted(pid=child.pid, resumed_step=resumed_step)))
        take = on_checkpoint or self._ignore
        try:
            supervision = Supervision(child, self.reporter, self.control, self.patience, take, self.terms.process)
            result = await supervision.run()
        finally:
            self.lease.pid = 0
        return replace(result, out_of_memory=crashes.out_of_memory_kills() > kills)

    def failure(self, result: ChildResult) -> Failed | None:
        """Why the child ended without a result; None when it ended in order because it was asked to."""
        verdict = result.verdict
        if isinstance(verdict, events.Failed):
            return Failed(verdict.reason, verdict.message, verdict.problems, verdict.retryable)
        if result.stalled:
            return crashes.explain_stall(self.patience.stall_seconds, result.tail, self.terms)
        if verdict is None:
            return crashes.explain_crash(result.ended, result.tail, self.terms, out_of_memory=result.out_of_memory)
        return None

    def ending(self, result: ChildResult, checkpoint_step: int = 0) -> Ending:
        """The end of an attempt whose child left no result; checkpoint_step is what a stop leaves behind."""
        failure = self.failure(result)
        if self.control.stop_wanted:
            if failure is not None and self.control.intent < Intent.DISCARD:
                self.reporter.log([f"while stopping: {failure}"])
            return Stopped(checkpoint_step, self.control.stop_reason)
        if self.control.intent >= Intent.RELEASE and (failure is None or failure.retryable):
            return Released()
        message = f"the {self.terms.process} was told to stop by somebody else than its worker"
        return failure or Failed("CHILD_STOPPED", message, retryable=True)

    def output(self, done: events.Done, output_dir: Path) -> Path:
        """The directory that a finished child has filled. AttemptError when it is not the one it was told."""
        if done.path.resolve() != output_dir.resolve() or not output_dir.is_dir():
            raise AttemptError(Failed("NO_OUTPUT", f"the {self.terms.process} left no result in {output_dir}"))
        return output_dir

    def _ignore(self, event: CheckpointWritten) -> None:
        self.reporter.log([f"a checkpoint of the {self.terms.process} is ignored: {event.path}"])


def patience_for(labels: Mapping[str, str], usual: Patience, *, saves: bool = True) -> Patience:
    """A task may be stopped with a grace period of its own, by a label.

    Without one, work that saves nothing when it is stopped is given NOTHING_TO_SAVE_SECONDS at most.
    """
    with contextlib.suppress(ValueError):
        seconds = float(labels[GRACE_LABEL]) if GRACE_LABEL in labels else -1.0
        if 0 <= seconds <= LONGEST_GRACE_SECONDS:
            return replace(usual, grace_seconds=seconds)
    return usual if saves else replace(usual, grace_seconds=min(usual.grace_seconds, NOTHING_TO_SAVE_SECONDS))


async def brought_to_an_end(control: Control, work: Awaitable[Ending]) -> Ending:
    """The ending of work, also when it raises what is foreseen; Interrupted only when the attempt is another's."""
    try:
        return await work
    except Interrupted as interruption:
        if interruption.intent is Intent.ABANDON:
            raise
        return Stopped(why=control.stop_reason) if control.stop_wanted else Released()
    except AttemptError as error:
        return error.failed
    except OSError as error:
        return Failed("DISK_FAILED", f"the worker cannot use its disk: {error}", retryable=True)
