"""How fast earlier trainings were on this machine, kept in a small file; a damaged file counts as an empty one."""

import contextlib
import fcntl
import json
import logging
import math
import os
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

logger = logging.getLogger(__name__)

MAX_RECORDS = 200
MAX_BYTES = 1 << 20
# Runs on models this many times smaller or larger say nothing.
LIKE_SIZES = 8.0
# The newest of the runs that are alike count.
NEWEST = 5


@dataclass(frozen=True, slots=True)
class Run:
    """What decides a training's speed: the device's name, how many, the method, whether blocks are computed twice, the
    model's weights; and the tokens of a step with the steps it took a second."""

    device: str
    processes: int
    method: str
    checkpointing: bool
    parameters: int
    tokens_per_step: float
    steps_per_second: float = 0.0

    @property
    def work_per_second(self) -> float:
        """Weights times tokens a second, which for one device and method hardly depends on the model."""
        return self.parameters * self.tokens_per_step * self.steps_per_second

    def is_like(self, other: "Run") -> bool:
        """Whether one run's speed says something about the other's."""
        mine = (self.device, self.processes, self.method, self.checkpointing)
        theirs = (other.device, other.processes, other.method, other.checkpointing)
        sizes = max(self.parameters, 1) / max(other.parameters, 1)
        return mine == theirs and 1 / LIKE_SIZES <= sizes <= LIKE_SIZES


class Calibration:
    """Runs in a JSON file, newest last. Several processes may share the file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def steps_per_second(self, planned: Run) -> float:
        """Steps a second to expect of a run; 0 when none was like it, or its tokens are unknown."""
        alike = [run.work_per_second for run in self.runs() if run.is_like(planned)][-NEWEST:]
        work = planned.parameters * planned.tokens_per_step
        return statistics.median(alike) / work if alike and work > 0 else 0.0

    def runs(self) -> list[Run]:
        """Every run that can be read."""
        try:
            if self._path.stat().st_size > MAX_BYTES:
                return []
            content = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return []
        except (OSError, ValueError, RecursionError) as error:
            logger.warning("%s is not used: %s", self._path, error)
            return []
        return [run for item in content if (run := _run(item))] if isinstance(content, list) else []

    def record(self, run: Run) -> None:
        """Adds a run; the oldest go. A disk that takes no more files is only logged."""
        if not (math.isfinite(run.work_per_second) and run.work_per_second > 0):
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._locked():
                content = json.dumps([asdict(item) for item in [*self.runs(), run][-MAX_RECORDS:]])
                temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
                temporary.write_text(content)
                temporary.replace(self._path)
        except OSError as error:
            logger.warning("%s could not be written: %s", self._path, error)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self._path.with_name(f".{self._path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _run(item: object) -> Run | None:
    """A run from its JSON object; None for what is none."""
    kinds = {field.name: field.type for field in fields(Run)}
    if not isinstance(item, dict) or set(item) != set(kinds):
        return None
    numbers = ("processes", "parameters", "tokens_per_step", "steps_per_second")
    if not all(isinstance(item[name], int | float) and math.isfinite(item[name]) for name in numbers):
        return None
    run = Run(**item)
    return run if run.work_per_second > 0 and isinstance(run.device, str) and isinstance(run.method, str) else None
