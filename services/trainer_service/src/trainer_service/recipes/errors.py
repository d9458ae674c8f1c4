"""Why a job ends without a model; each becomes one error event."""

from collections.abc import Sequence


class RecipeError(Exception):
    """A job cannot go on. reason is a stable word; retryable: the same job may succeed elsewhere or later."""

    reason = "TRAINING_FAILED"
    retryable = False

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.problems = tuple(problems)


class InvalidJob(RecipeError):
    """job.json or its specification cannot be used."""

    reason = "INVALID_SPEC"


class NotImplementedYet(RecipeError):
    """This version does not train this."""

    reason = "NOT_IMPLEMENTED"


class LossDiverged(RecipeError):
    """The loss is no longer a number."""

    reason = "LOSS_DIVERGED"


class OutputExists(RecipeError):
    """The output directory holds files already."""

    reason = "OUTPUT_EXISTS"


class CheckpointUnusable(RecipeError):
    """The checkpoint to go on from does not fit the job."""

    reason = "CHECKPOINT_UNUSABLE"
