"""The ends that an attempt can come to, each with the fact that tells of it."""

from dataclasses import dataclass, field

from tunesmith.events.v1 import fact_pb2 as facts
from tunesmith.task.v1 import task_pb2 as tasks
from workerkit.intent import StopReason


@dataclass(frozen=True, slots=True)
class Completed:
    """The result is stored. what: how its log names it."""

    output_prefix: str
    output_dir: str
    manifest_sha256: str
    what: str = "the result"

    def fact(self, progress: tasks.Progress) -> facts.Fact:
        completed = facts.AttemptCompleted(
            output_prefix=self.output_prefix,
            output_dir=self.output_dir,
            manifest_sha256=self.manifest_sha256,
            progress=progress,
        )
        return facts.Fact(completed=completed)

    def __str__(self) -> str:
        return f"completed; {self.what} is in {self.output_dir}"


@dataclass(frozen=True, slots=True)
class Stopped:
    """A stop was asked for; checkpoint_step is what was saved on the way out, 0 for nothing. why: no user asked."""

    checkpoint_step: int = 0
    why: StopReason | None = None

    def fact(self, progress: tasks.Progress) -> facts.Fact:
        stopped = facts.AttemptStopped(checkpoint_step=self.checkpoint_step)
        if self.why is not None:
            stopped.error.CopyFrom(tasks.TaskError(reason=self.why.reason, message=self.why.message))
        return facts.Fact(stopped=stopped)

    def __str__(self) -> str:
        saved = f"checkpoint-{self.checkpoint_step} is stored" if self.checkpoint_step else "nothing was saved"
        return f"stopped {f'because {self.why.message}' if self.why else 'as asked'}; {saved}"


@dataclass(frozen=True, slots=True)
class Failed:
    """Something went wrong; another attempt may do better where retryable says so."""

    reason: str
    message: str
    problems: list[str] = field(default_factory=list)
    retryable: bool = False

    def fact(self, progress: tasks.Progress) -> facts.Fact:
        error = tasks.TaskError(reason=self.reason, message=self.message, problems=self.problems)
        return facts.Fact(failed=facts.AttemptFailed(error=error, retryable=self.retryable))

    def __str__(self) -> str:
        more = (f"  - {problem}" for problem in self.problems if problem not in self.message)
        return "\n".join((f"failed: {self.message}", *more))


@dataclass(frozen=True, slots=True)
class Released:
    """The worker leaves and gives the task back."""

    reason: str = "worker is shutting down"

    def fact(self, progress: tasks.Progress) -> facts.Fact:
        return facts.Fact(released=facts.AttemptReleased(reason=self.reason))

    def __str__(self) -> str:
        return f"given back: {self.reason}"


Ending = Completed | Stopped | Failed | Released


class AttemptError(Exception):
    """Ends an attempt as failed."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.message)
        self.failed = failed
