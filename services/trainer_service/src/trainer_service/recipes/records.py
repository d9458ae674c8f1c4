"""Everything measured in a training: told as events, drawn as curves, and kept for checkpoints."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer_service.recipes.curves import Curves, Point
from workerkit.child.events import EventWriter


class Records:
    """The metrics of all steps so far, those before an interruption included. Without a directory none are drawn."""

    def __init__(self, events: EventWriter, runs: Path | None) -> None:
        self._events = events
        self._curves = Curves(runs) if runs else None
        self._history: list[dict[str, Any]] = []
        self._times: list[float] = []

    def add(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Numbers measured at a step."""
        moment = time.time()
        self._events.metrics(step, {**values, "epoch": epoch})
        self._history.append({"epoch": epoch, "step": step, **values})
        self._times.append(moment)
        if self._curves:
            self._curves.add((step, {**values, "epoch": epoch}, moment))

    def state(self) -> dict[str, Any]:
        """What trainer_state.json holds: log_history as transformers writes it, and when each entry was measured."""
        return {"log_history": list(self._history), "log_times": list(self._times)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on with the curves of a checkpoint."""
        self._history, self._times = list(state["log_history"]), list(state["log_times"])
        if self._curves:
            self._curves.add(*map(_point, self._history, self._times))


def _point(entry: Mapping[str, Any], moment: float) -> Point:
    return int(entry["step"]), {name: value for name, value in entry.items() if name != "step"}, float(moment)
