"""An export tells how far it is, and that it still lives while it stays where it is."""

from collections.abc import Mapping
from typing import Any

import pytest

from export_service.recipes.progress import REPEAT_SECONDS, ExportStopped, Progress
from workerkit.child.events import EventWriter
from workerkit.child.stopping import StopRequest


class Recorder(EventWriter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(None)
        self.told: list[int | str] = []

    def _send(self, event: Mapping[str, Any]) -> None:
        if event["type"] in ("progress", "phase"):
            self.told.append(event.get("phase", event.get("step")))


def test_what_stays_as_it_is_is_told_again_every_few_seconds() -> None:
    now, events = 0.0, Recorder()
    part = Progress(events, StopRequest(), clock=lambda: now).part(0.0, 0.5)
    for _ in range(100):
        part(0.9, "quantizing")
    assert events.told == ["quantizing", 45]
    now += REPEAT_SECONDS
    part(0.9, "quantizing")
    part(0.9, "quantizing")
    assert events.told == ["quantizing", 45, 45]
    now += REPEAT_SECONDS
    part(0.1, "quantizing")
    assert events.told == ["quantizing", 45, 45, 45], "progress never goes back"


def test_a_stop_ends_it_wherever_it_is() -> None:
    stop = StopRequest()
    progress = Progress(Recorder(), stop)
    progress.tell(0.1, "merging")
    stop.requested = True
    with pytest.raises(ExportStopped):
        progress.tell(0.1, "merging")
