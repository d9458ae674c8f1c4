"""Why a job ends without a result; each becomes one error event."""

from collections.abc import Sequence


class RecipeError(Exception):
    """A job cannot go on. reason is a stable word; retryable: the same job may succeed elsewhere or later."""

    reason = "JOB_FAILED"
    retryable = False

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.problems = tuple(problems)


class InvalidJob(RecipeError):
    """job.json or its specification cannot be used."""

    reason = "INVALID_SPEC"


class OutputExists(RecipeError):
    """The output directory holds files already."""

    reason = "OUTPUT_EXISTS"
