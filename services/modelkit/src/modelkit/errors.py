"""Errors of models, data and paths; every problem of an input is listed at once."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with an input: the field it came from and what to do about it."""

    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


class ModelkitError(Exception):
    """An input cannot be used. reason is a stable word for programs."""

    reason = "INVALID_INPUT"

    def __init__(self, problems: Sequence[Problem] | Problem, *, reason: str = "") -> None:
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        self.reason = reason or type(self).reason
        super().__init__("; ".join(str(problem) for problem in self.problems))


class PathNotAllowed(ModelkitError):
    """A path is malformed or lies outside the allowed roots."""

    reason = "PATH_NOT_ALLOWED"


class InvalidModel(ModelkitError):
    """A base model cannot be trained."""

    reason = "INVALID_MODEL"


class InvalidDataset(ModelkitError):
    """A dataset cannot be trained on."""

    reason = "INVALID_DATASET"


class InvalidTemplate(ModelkitError):
    """A chat template fails, never ends, or does not fit the conversation."""

    reason = "INVALID_CHAT_TEMPLATE"


class InvalidAdapter(ModelkitError):
    """An adapter cannot be read, or does not fit its base model."""

    reason = "INVALID_ADAPTER"


class InvalidCheckpoint(ModelkitError):
    """A checkpoint is not what its manifest says."""

    reason = "INVALID_CHECKPOINT"
