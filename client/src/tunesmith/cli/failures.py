"""Exit codes and how a failure is told: 0 fine, 1 the task did not complete, 2 wrong use, 3 the platform said no."""

import sys

from tunesmith.client import ApiError, InvalidArgument

TASK_FAILED = 1
USAGE = 2
REFUSED = 3
INTERRUPTED = 130


class UsageProblem(Exception):
    """The command was used wrongly; the message says how to do it right."""


class MissingPart(Exception):
    """A part of Tunesmith that this command needs is not installed."""


def report(error: Exception) -> int | None:
    """Tells the user about an error on stderr; the exit code, or None for an error that is a defect."""
    if not isinstance(error, (ApiError, UsageProblem, MissingPart)):
        return None
    print(f"Error: {error}", file=sys.stderr)
    return USAGE if isinstance(error, (InvalidArgument, UsageProblem)) else REFUSED
