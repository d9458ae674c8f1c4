"""Words for people: states, sizes, durations, and text that can do nothing to a terminal."""

import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from tunesmith.task.v1 import task_pb2

STYLES = {
    task_pb2.STATE_PENDING: "yellow",
    task_pb2.STATE_RUNNING: "cyan",
    task_pb2.STATE_STOPPING: "magenta",
    task_pb2.STATE_STOPPED: "magenta",
    task_pb2.STATE_COMPLETED: "green",
    task_pb2.STATE_FAILED: "red",
}


def state_word(state: task_pb2.State.ValueType) -> str:
    """For example "running"."""
    return task_pb2.State.Name(state).removeprefix("STATE_").lower()


def harmless(text: str) -> str:
    """Text without control and direction characters; tabs stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c == "\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else "�" for c in text)


def harmless_lines(text: str) -> str:
    """Text of several lines, each of them harmless."""
    return "\n".join(harmless(line) for line in text.split("\n"))


def duration(seconds: float) -> str:
    """For example "1:05:09" or "3:07"."""
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size(count: float) -> str:
    """Bytes, for example "12.3 MB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def moment(time: Timestamp) -> str:
    """Local date and time; empty when unset."""
    return time.ToDatetime(UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S") if time.seconds else ""


def with_problems(message: str, problems: Sequence[str]) -> list[str]:
    """A message and its problems, each once: a line for each of several, none for one that the message tells."""
    if len(problems) > 1 and all(problem in message for problem in problems):
        return [f"{len(problems)} problems", *(f"  - {problem}" for problem in problems)]
    return [message, *(f"  - {problem}" for problem in problems if problem not in message)]


def dated(word: str) -> str:
    """A name for something that is made now, for example "export_20260102_030405"."""
    return datetime.now().astimezone().strftime(f"{word}_%Y%m%d_%H%M%S")


def clock(time: Timestamp) -> str:
    """Local time of day; now when unset."""
    return (time.ToDatetime(UTC) if time.seconds else datetime.now(UTC)).astimezone().strftime("%H:%M:%S")


def number(value: float) -> str:
    """A metric's value in four significant digits."""
    return f"{value:.4g}"
