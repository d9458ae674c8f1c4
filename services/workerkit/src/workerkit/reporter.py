"""Turns what happens to an attempt into facts and log batches: at once after a silence, else not too many of them."""

import asyncio
import math
import time
from collections.abc import Callable, Iterable

from google.protobuf.timestamp_pb2 import Timestamp

from servicekit import subjects
from servicekit.bus import Outgoing
from tunesmith.events.v1 import fact_pb2 as facts
from tunesmith.task.v1 import task_pb2 as tasks
from workerkit.child_events import Advanced, Measured
from workerkit.spool import Spool

METRIC_SECONDS = 0.2
METRIC_POINTS = 500
PROGRESS_SECONDS = 0.5
PHASE_SECONDS = 0.05
PACE_STEPS = 10
LOG_SECONDS = 0.05
LOG_LINES = 500
LOG_BYTES = 256 << 10
LINE_CHARACTERS = 16_000


def timestamp(moment: float | None = None) -> Timestamp:
    """A protobuf timestamp of unix seconds; of now without any."""
    nanoseconds = time.time_ns() if moment is None else int(moment * 1e9)
    return Timestamp(seconds=nanoseconds // 1_000_000_000, nanos=nanoseconds % 1_000_000_000)


class Timers:
    """Delayed calls by name; a call that is already under way is not asked for twice."""

    def __init__(self) -> None:
        self._handles: dict[Callable[[], None], asyncio.TimerHandle] = {}

    def within(self, seconds: float, call: Callable[[], None]) -> None:
        """Has call made in so many seconds, or when it is due anyway."""
        if call not in self._handles:
            self._handles[call] = asyncio.get_running_loop().call_later(seconds, call)

    def done(self, call: Callable[[], None]) -> None:
        """Forgets that a call is due."""
        if (handle := self._handles.pop(call, None)) is not None:
            handle.cancel()


class Reporter:
    """The facts and the log of one attempt, numbered and put into a spool. Nothing here waits.

    progress is how far the task was before; until its work begins that is how far it is.
    """

    def __init__(self, task_id: str, attempt: int, spool: Spool, progress: tasks.Progress) -> None:
        self.progress = tasks.Progress()
        self.progress.CopyFrom(progress)
        self.progress.eta_seconds = 0.0
        self._task_id = task_id
        self._attempt = attempt
        self._spool = spool
        self._sequence = 0
        self._log_batches = 0
        self._points: list[tasks.MetricPoint] = []
        self._lines: list[tasks.LogLine] = []
        self._line_bytes = 0
        self._timers = Timers()
        self._progress_dirty = False
        self._progress_sent = self._points_sent = self._lines_sent = -math.inf
        self._pace: tuple[float, int] | None = None  # when and at which step work began
        self._newest: tuple[float, int] | None = None  # when the newest step was told, and its number

    def fact(self, fact: facts.Fact) -> None:
        """Sends a fact behind everything measured before it."""
        self._flush_points()
        self._flush_progress()
        self._send(fact)

    def end(self, fact: facts.Fact) -> None:
        """Sends the whole log and then, when all else is stored, the attempt's last fact."""
        self._flush_lines(final=True)
        self._flush_points()
        self._flush_progress()
        self._send(fact, alone=True)

    def measured(self, event: Measured) -> None:
        """Adds points of metrics."""
        moment = timestamp(event.time)
        for name, value in event.values.items():
            self._points.append(tasks.MetricPoint(name=name, step=event.step, value=value, time=moment))
        wait = self._points_sent + METRIC_SECONDS - time.monotonic()
        if len(self._points) >= METRIC_POINTS or wait <= 0:
            self._flush_points()
        else:
            self._timers.within(wait, self._flush_points)

    @property
    def task_id(self) -> str:
        """The task of the attempt."""
        return self._task_id

    @property
    def steps_per_second(self) -> float:
        """How fast this attempt has worked, everything between its steps included; 0 before a few steps."""
        if self._pace is None or self._newest is None:
            return 0.0
        (began, first), (now, step) = self._pace, self._newest
        return (step - first) / (now - began) if step - first >= PACE_STEPS and now > began else 0.0

    def phase(self, name: str) -> None:
        """Says what goes on now."""
        self.progress.phase = name
        self._progressed(at_once=True)

    def anew(self) -> None:
        """The attempt repeats everything: nothing that was reached before counts."""
        self.progress = tasks.Progress()

    def started(self, step: int, total_steps: int) -> None:
        """Work goes on from step."""
        self._pace = (time.monotonic(), step)
        self._set_steps(step, total_steps)
        self._progressed(at_once=True)

    def advanced(self, event: Advanced) -> None:
        """Work came further."""
        self._newest = (time.monotonic(), event.step)
        self.progress.epoch = event.epoch
        self._set_steps(event.step, event.total_steps)
        self._progressed()

    def log(self, texts: Iterable[str]) -> None:
        """Adds lines to the log."""
        moment = timestamp()
        for text in texts:
            for piece in pieces(text):
                self._lines.append(tasks.LogLine(time=moment, text=piece, attempt=self._attempt))
                self._line_bytes += len(piece.encode())
                if len(self._lines) >= LOG_LINES or self._line_bytes >= LOG_BYTES:
                    self._flush_lines()
        wait = self._lines_sent + LOG_SECONDS - time.monotonic()
        if wait <= 0:
            self._flush_lines()
        else:
            self._timers.within(wait, self._flush_lines)

    def close(self) -> None:
        """Stops every timer; what was not sent is dropped."""
        for call in (self._flush_points, self._flush_progress, self._flush_lines):
            self._timers.done(call)

    def _set_steps(self, step: int, total_steps: int) -> None:
        progress = self.progress
        progress.step, progress.total_steps = step, total_steps
        progress.percent = min(100.0, 100.0 * step / total_steps) if total_steps > 0 else 0.0
        progress.eta_seconds = 0.0
        if self._pace is not None and step > self._pace[1] and total_steps > step:
            began, first = self._pace
            progress.eta_seconds = (total_steps - step) * (time.monotonic() - began) / (step - first)

    def _progressed(self, *, at_once: bool = False) -> None:
        self._progress_dirty = True
        pause = PHASE_SECONDS if at_once else PROGRESS_SECONDS
        wait = self._progress_sent + pause - time.monotonic()
        if wait <= 0:
            self._flush_progress()
        else:
            self._timers.within(wait, self._flush_progress)

    def _flush_progress(self) -> None:
        self._timers.done(self._flush_progress)
        if self._progress_dirty:
            self._progress_dirty = False
            self._progress_sent = time.monotonic()
            self._send(facts.Fact(progressed=self.progress))

    def _flush_points(self) -> None:
        self._timers.done(self._flush_points)
        points, self._points = self._points, []
        self._points_sent = time.monotonic() if points else self._points_sent
        for start in range(0, len(points), METRIC_POINTS):
            batch = points[start : start + METRIC_POINTS]
            self._send(facts.Fact(metrics=facts.MetricsReported(points=batch)))

    def _flush_lines(self, *, final: bool = False) -> None:
        self._timers.done(self._flush_lines)
        if self._lines or final:
            self._log_batches += 1
            batch = facts.LogBatch(
                task_id=self._task_id,
                attempt=self._attempt,
                lines=self._lines,
                final=final,
                number=self._log_batches,
            )
            self._lines, self._line_bytes, self._lines_sent = [], 0, time.monotonic()
            message_id = f"log.{self._task_id}.{self._attempt}.{self._log_batches}"
            self._spool.put(Outgoing(subjects.log(self._task_id), batch.SerializeToString(), message_id))

    def _send(self, fact: facts.Fact, *, alone: bool = False) -> None:
        self._sequence += 1
        fact.task_id, fact.attempt, fact.sequence = self._task_id, self._attempt, self._sequence
        fact.time.CopyFrom(timestamp())
        message_id = f"fact.{self._task_id}.{self._attempt}.{self._sequence}"
        self._spool.put(Outgoing(subjects.fact(self._task_id), fact.SerializeToString(), message_id), alone=alone)


def pieces(text: str) -> list[str]:
    """A line as the log keeps it: of what a progress bar overwrote only the last state, and not too long a piece."""
    line = text.rstrip("\r\n").rpartition("\r")[2]
    return [line[at : at + LINE_CHARACTERS] for at in range(0, len(line) or 1, LINE_CHARACTERS)]
