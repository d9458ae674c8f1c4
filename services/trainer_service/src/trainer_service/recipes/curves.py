"""TensorBoard event files: the curves of a training, with the tags that transformers gives them."""

import math
import os
import shutil
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SPLITS = ("eval", "test")

Point = tuple[int, Mapping[str, Any], float]


class Curves:
    """Appends points to one event file of a directory, which is emptied first.

    TensorBoard's record format is written by the tensorboard package, which is imported with the first point: none of
    it is needed before. Points are in the file when `add` returns.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path: Path | None = None

    def add(self, *points: Point) -> None:
        """Steps with their values, and when they were measured. Raises OSError."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        events = []
        if self._path is None:
            moment = points[0][2] if points else time.time()
            self._path = self._create(moment)
            events.append(Event(wall_time=moment, file_version="brain.Event:2"))
        for step, values, moment in points:
            drawn = [Summary.Value(tag=tag(name), simple_value=value) for name, value in finite(values).items()]
            events.append(Event(wall_time=moment, step=step, summary=Summary(value=drawn)))
        with self._path.open("ab") as file:
            writer = RecordWriter(file)
            for event in events:
                writer.write(event.SerializeToString())

    def _create(self, moment: float) -> Path:
        shutil.rmtree(self._directory, ignore_errors=True)
        self._directory.mkdir(parents=True)
        return self._directory / f"events.out.tfevents.{int(moment):010d}.{socket.gethostname()}.{os.getpid()}.0"


def tag(metric: str) -> str:
    """train/loss for "loss", eval/loss for "eval_loss"."""
    split, _, name = metric.partition("_")
    return f"{split}/{name}" if split in SPLITS and name else f"train/{metric}"


def finite(values: Mapping[str, Any]) -> dict[str, float]:
    """The values that a curve can show."""
    return {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}
