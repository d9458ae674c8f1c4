"""One task as it goes: a live bar with rate and remaining time on a terminal, lines elsewhere."""

import time
from collections import deque
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from tunesmith.cli import text
from tunesmith.task.v1 import task_pb2
from tunesmith.task.v1.event_pb2 import TaskEvent
from tunesmith.task.v1.task_pb2 import Task

_LINE_SECONDS = 5.0
_RATE_SECONDS = 10.0


class Rate:
    """Steps per second over the last seconds; starts anew when the steps go back."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()
        self.value = 0.0

    def update(self, step: int, seconds: float) -> None:
        """Takes note that step was reached at a time."""
        if self._seen and step < self._seen[-1][1]:
            self._seen.clear()
            self.value = 0.0
        self._seen.append((seconds, step))
        while len(self._seen) > 2 and seconds - self._seen[1][0] >= _RATE_SECONDS:
            self._seen.popleft()
        first, start = self._seen[0]
        if seconds > first and step > start:
            self.value = (step - start) / (seconds - first)

    def remaining(self, step: int, total: int, estimate: float) -> str:
        """Time left: the platform's estimate, else from this rate; empty while unknown."""
        if estimate > 0:
            return text.duration(estimate)
        return text.duration((total - step) / self.value) if self.value and total else ""


class TaskView:
    """Shows the events of one task; use it as a context manager."""

    def __init__(self, console: Console, name: str = "") -> None:
        self._console = console
        self._name = name
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>5.1f}%"),
            TextColumn("{task.fields[detail]}"),
            console=console,
            disable=not console.is_terminal,
            transient=False,
        )
        self._bar_id: TaskID = self._bar.add_task(text.harmless(name) or "task", total=100.0, detail="")
        self._rate = Rate()
        self._progress = task_pb2.Progress()
        self._loss: float | None = None
        self._last_line = 0.0
        self._state = task_pb2.STATE_UNSPECIFIED
        self._told = ""
        self._trains = True

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, event: TaskEvent) -> None:
        """Shows what an event says."""
        match event.WhichOneof("payload"):
            case "task":
                self._show_state(event)
            case "progress":
                self._take_progress(event.progress, event.time.ToNanoseconds() / 1e9)
            case "metrics":
                for point in event.metrics.points:
                    if point.name == "loss":
                        self._loss = point.value
            case "checkpoint":
                self._say(event, describe(event))
        self._draw(event)

    def _show_state(self, event: TaskEvent) -> None:
        task = event.task
        self._trains = task.spec.WhichOneof("work") in (None, "finetune")
        self._take_progress(task.progress, event.time.ToNanoseconds() / 1e9)
        if "loss" in task.metrics:
            self._loss = task.metrics["loss"]
        line = describe(event)
        news = task.state != self._state or event.type not in ("task.snapshot", "task.progressed")
        if news and line != self._told:
            self._say(event, line, text.STYLES.get(task.state, ""))
            self._told = line
        self._state = task.state
        if task.name:
            self._bar.update(self._bar_id, description=text.harmless(task.name))

    def _take_progress(self, progress: task_pb2.Progress, seconds: float) -> None:
        self._progress = progress
        self._rate.update(progress.step, seconds)

    def _say(self, event: TaskEvent, line: str, style: str = "") -> None:
        self._console.print(Text(f"{text.clock(event.time)} {line}", style=style))

    def _draw(self, event: TaskEvent) -> None:
        self._bar.update(self._bar_id, completed=self._progress.percent, detail=self.detail())
        now = time.monotonic()
        quiet = self._console.is_terminal or event.WhichOneof("payload") != "progress"
        if not quiet and now - self._last_line >= _LINE_SECONDS:
            self._last_line = now
            self._say(event, f"{self._progress.percent:.1f} % {self.detail()}")

    def detail(self) -> str:
        """Step, rate, loss and time left, as far as they are known; of what is no training the phase, not the rate."""
        progress = self._progress
        steps = f"{progress.step}/{progress.total_steps}" if progress.total_steps else ""
        parts = [steps, "" if steps and self._trains else progress.phase]
        if self._rate.value and self._trains:
            parts.append(f"{self._rate.value:.1f} steps/s")
        if self._loss is not None:
            parts.append(f"loss {text.number(self._loss)}")
        left = self._rate.remaining(progress.step, progress.total_steps, progress.eta_seconds)
        if left and self._state not in (task_pb2.STATE_COMPLETED, task_pb2.STATE_FAILED, task_pb2.STATE_STOPPED):
            parts.append(f"{left} left")
        return "  ".join(part for part in parts if part)


def describe(event: TaskEvent) -> str:
    """One line about an event, safe for a terminal."""
    match event.WhichOneof("payload"):
        case "task":
            line = _describe_task(event)
        case "progress":
            progress = event.progress
            line = f"step {progress.step} of {progress.total_steps or '?'}, {progress.percent:.1f} % {progress.phase}"
        case "metrics":
            last = {point.name: point for point in event.metrics.points}
            values = ", ".join(f"{name} {text.number(point.value)}" for name, point in sorted(last.items()))
            line = f"step {max((point.step for point in last.values()), default=0)}: {values}"
        case "checkpoint":
            checkpoint = event.checkpoint.checkpoint
            verb = event.type.rpartition(".")[2]
            line = f"checkpoint {checkpoint.step} {verb} ({text.size(checkpoint.size)})"
            line += f": {event.checkpoint.reason}" if event.checkpoint.reason else ""
        case _:
            line = event.type
    return text.harmless(line)


def _describe_task(event: TaskEvent) -> str:
    task: Task = event.task
    word = text.state_word(task.state)
    verb = event.type.removeprefix("task.")
    line = word if verb in ("snapshot", word, "started", "created") else f"{verb}, {word}"
    if task.state == task_pb2.STATE_PENDING and not task.error.reason:
        before = f"{', '.join(task.depends_on)} to complete, then for " if task.depends_on else ""
        line += f": waits for {before}a worker"
    if task.state == task_pb2.STATE_RUNNING:
        line += f" (attempt {task.attempt} on {task.worker})"
    if task.error.reason and task.state in (task_pb2.STATE_PENDING, task_pb2.STATE_FAILED):
        line += f": {task.error.reason}: {task.error.message}"
    if task.state == task_pb2.STATE_COMPLETED and task.output_dir:
        line += f": {task.output_dir}"
    return line
