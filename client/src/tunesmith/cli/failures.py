"""Exit codes and how a failure is told: 0 fine, 1 the task did not complete, 2 wrong use, 3 the platform said no."""

import sys

from tunesmith.cli.text import with_problems
from tunesmith.client import ApiError, InvalidArgument, Unauthenticated

TASK_FAILED = 1
USAGE = 2
REFUSED = 3
INTERRUPTED = 130

TOKENS = (
    "give one with --token or TUNESMITH_TOKEN, or name with --data-dir the data directory of a platform on this machine"
)


class UsageProblem(Exception):
    """The command was used wrongly; the message says how to do it right."""


class MissingPart(Exception):
    """A part of Tunesmith that this command needs is not installed."""


def report(error: Exception) -> int | None:
    """Tells the user about an error on stderr; the exit code, or None for an error that is a defect."""
    if not isinstance(error, (ApiError, UsageProblem, MissingPart)):
        return None
    print(f"Error: {_words(error)}", file=sys.stderr)
    return USAGE if isinstance(error, (InvalidArgument, UsageProblem)) else REFUSED


def _words(error: Exception) -> str:
    """What went wrong, with a line for each of several problems, and what helps where the message cannot know it."""
    if isinstance(error, Unauthenticated):
        return f"{error}; {TOKENS}"
    message, problems = str(error), str(error).splitlines()
    if isinstance(error, ApiError):
        message, problems = error.message, [str(problem) for problem in error.problems]
    return "\n".join(with_problems(message, problems))
