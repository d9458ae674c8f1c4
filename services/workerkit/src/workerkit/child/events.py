"""The events of a job: JSON objects, one per line, written at once to a file descriptor."""

import math
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

PROGRESS_SECONDS = 0.2
LEVELS = ("debug", "info", "warning", "error")
DEBUG, INFO, WARNING, ERROR = LEVELS


class EventWriter:
    """Writes a job's events; without a descriptor it is silent, as every data-parallel process but the first is."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self._last_progress = -math.inf
        self.log_level = INFO
        self._lock = threading.Lock()  # checkpoints are told of from the thread that writes them

    def phase(self, name: str) -> None:
        """The job does something else now: "loading", "training", "evaluating", "saving"."""
        self._write("phase", phase=name)

    def started(self, *, step: int, total_steps: int) -> None:
        """Training begins after so many steps of so many."""
        self._write("started", step=step, total_steps=total_steps)

    def progress(self, *, step: int, total_steps: int, epoch: float, always: bool = False) -> None:
        """A step is done. Of quick steps only a few a second are told."""
        now = time.monotonic()
        if always or now - self._last_progress >= PROGRESS_SECONDS:
            self._last_progress = now
            self._write("progress", step=step, total_steps=total_steps, epoch=epoch)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers measured at a step."""
        self._write("metrics", step=step, values={name: _number(value) for name, value in values.items()})

    def checkpoint(self, *, step: int, path: Path, loss: float | None) -> None:
        """A checkpoint is whole on disk."""
        self._write("checkpoint", step=step, path=str(path), loss=None if loss is None else _number(loss))

    def log(self, text: str, level: str = INFO) -> None:
        """A line for people, which begins with a level that matters; one below log_level is left out."""
        if LEVELS.index(level) >= LEVELS.index(self.log_level):
            shown = f"{level}: {text}" if level in (WARNING, ERROR) else text
            self._write("log", text=_clean(shown), level=level)

    def done(self, *, path: Path, step: int) -> None:
        """The finished model is whole on disk."""
        self._write("done", path=str(path), step=step)

    def stopped(self, *, step: int) -> None:
        """The job ended on request; step is that of the checkpoint it saved, 0 when there was nothing to save."""
        self._write("stopped", step=step)

    def error(self, *, reason: str, message: str, problems: Sequence[str] = (), retryable: bool = False) -> None:
        """The job cannot go on."""
        cleaned = [_clean(problem) for problem in problems]
        self._write("error", reason=reason, message=_clean(message), problems=cleaned, retryable=retryable)

    def repeat(self, event: Mapping[str, Any]) -> None:
        """Writes an event that another process of the job left behind."""
        self._send(event)

    def _write(self, kind: str, **content: Any) -> None:
        self._send({"type": kind, "time": time.time(), **content})

    def _send(self, event: Mapping[str, Any]) -> None:
        if self._descriptor is None:
            return
        line = orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE)
        with self._lock:
            while line:
                line = line[os.write(self._descriptor, line) :]


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _number(value: float) -> float | str:
    if math.isfinite(value):
        return float(value)
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"
