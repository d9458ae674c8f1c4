"""What a child says on its event pipe: JSON objects, one a line, each with a type and a time."""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_NAME = 200
MAX_TEXT = 1 << 20
MAX_MESSAGE = 20_000
MAX_PROBLEM = 2_000
MAX_PROBLEMS = 100


@dataclass(frozen=True, slots=True)
class Phase:
    name: str


@dataclass(frozen=True, slots=True)
class Started:
    step: int
    total_steps: int


@dataclass(frozen=True, slots=True)
class Advanced:
    step: int
    total_steps: int
    epoch: float


@dataclass(frozen=True, slots=True)
class Measured:
    step: int
    values: Mapping[str, float]
    time: float


@dataclass(frozen=True, slots=True)
class CheckpointWritten:
    step: int
    path: Path
    loss: float | None


@dataclass(frozen=True, slots=True)
class LogText:
    text: str


@dataclass(frozen=True, slots=True)
class Done:
    path: Path
    step: int


@dataclass(frozen=True, slots=True)
class Stopped:
    step: int


@dataclass(frozen=True, slots=True)
class Failed:
    reason: str
    message: str
    problems: list[str] = field(default_factory=list)
    retryable: bool = False


Event = Phase | Started | Advanced | Measured | CheckpointWritten | LogText | Done | Stopped | Failed


def number(value: Any) -> float:
    """A number of an event; "NaN", "Infinity" and "-Infinity" stand for what JSON cannot write."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError(f"{value!r} is not a number")
    return float(value)


def text(value: Any, limit: int = MAX_NAME) -> str:
    """At most limit characters of a text, without anything that UTF-8 cannot write."""
    return str(value)[:limit].encode("utf-8", "replace").decode()


def parse(line: bytes) -> Event | None:
    """The event of a line, None for a type that this version does not know. Raises ValueError for anything else."""
    try:
        event = json.loads(line)
        convert = CONVERTERS.get(event["type"])
        return convert(event) if convert else None
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


def _measured(event: dict[str, Any]) -> Measured:
    values = {text(name): number(value) for name, value in event["values"].items()}
    return Measured(int(event["step"]), values, _time(event))


def _checkpoint(event: dict[str, Any]) -> CheckpointWritten:
    loss = None if event.get("loss") is None else number(event["loss"])
    return CheckpointWritten(int(event["step"]), Path(event["path"]), loss)


def _failed(event: dict[str, Any]) -> Failed:
    problems = [text(problem, MAX_PROBLEM) for problem in (event.get("problems") or [])[:MAX_PROBLEMS]]
    message = text(event["message"], MAX_MESSAGE)
    return Failed(text(event["reason"]), message, problems, bool(event.get("retryable", False)))


CONVERTERS: dict[str, Callable[[dict[str, Any]], Event]] = {
    "phase": lambda event: Phase(text(event["phase"])),
    "started": lambda event: Started(int(event["step"]), int(event["total_steps"])),
    "progress": lambda event: Advanced(
        int(event["step"]), int(event["total_steps"]), number(event.get("epoch") or 0.0)
    ),
    "metrics": _measured,
    "checkpoint": _checkpoint,
    "log": lambda event: LogText(text(event["text"], MAX_TEXT)),
    "done": lambda event: Done(Path(event["path"]), int(event["step"])),
    "stopped": lambda event: Stopped(int(event["step"])),
    "error": _failed,
}


def _time(event: dict[str, Any]) -> float:
    moment = number(event.get("time", math.nan))
    return moment if math.isfinite(moment) and 0 < moment < 1e11 else time.time()
