"""What a training's losses give away: divergence, stall, overfitting (T27 to T30), and what is done about it."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainer_service.recipes import bookkeeping, memory, remedies, waiting
from trainer_service.recipes.bookkeeping import Bookkeeper
from trainer_service.recipes.config import Training
from trainer_service.recipes.errors import LossDiverged
from trainer_service.recipes.waiting import Waiting
from trainer_service.recipes.watching import Finding, LossWatch
from trainer_service.recipes.world import World

from .conftest import CPU, JobFactory, Recorder, run

STEPS = 1000


def findings(losses: list[float], *, every: int = 10, rate: float = 1e-3, again: int = -1) -> list[Finding]:
    """What is found in losses that are told every few steps; the watch goes on from its own state after `again`."""
    watch = LossWatch(Training(learning_rate=1e-3), STEPS)
    found = []
    for index, loss in enumerate(losses):
        found += list(watch.told(every * (index + 1), loss, rate))
        if index == again:
            state = json.loads(json.dumps(watch.state()))
            watch = LossWatch(Training(learning_rate=1e-3), STEPS)
            watch.restore(state)
    return found


@pytest.mark.parametrize("again", [-1, 5, 21])
def test_an_explosion_is_found_once_and_only_when_it_lasts(again: int) -> None:
    falling = [3.0 - 0.05 * step for step in range(20)]
    (found,) = findings([*falling, *[7.5] * 8], again=again)
    assert (found.kind, found.remedies) == ("divergence", remedies.DIVERGED)
    assert "it is 7.50" in found.message
    assert "2.05 at its best, at step 200" in found.message
    assert findings([*falling, 7.5, 8.0, 7.5, *falling]) == []


def test_a_loss_that_is_no_number_is_found_at_once() -> None:
    (found,) = findings([2.0, math.nan, math.inf])
    assert found.message == "the loss is no longer a number at step 20"


@pytest.mark.parametrize("again", [-1, 3, 15])
def test_a_loss_that_does_not_fall_is_found_while_the_rate_is_no_small_one(again: int) -> None:
    noise = [0.01 * math.sin(step) for step in range(60)]
    (found,) = findings([2.0 + wave for wave in noise], again=again)
    assert (found.kind, found.remedies) == ("stall", remedies.LOSS_NOT_FALLING)
    assert "has not fallen for 190 steps" in found.message
    assert findings([2.0 - 0.01 * step + wave for step, wave in enumerate(noise)]) == []
    assert findings([2.0 + wave for wave in noise], rate=1e-5) == []
    assert findings([1e-4] * 60) == []


def evaluations(watch: LossWatch, pairs: list[tuple[float, float]]) -> list[Finding]:
    found = []
    for index, (trained, validated) in enumerate(pairs):
        found += list(watch.told(10 * index + 1, trained, 1e-3))
        found += list(watch.evaluated(10 * index + 1, validated))
    return found


def test_overfitting_is_a_validation_loss_that_rises_while_the_training_loss_falls() -> None:
    def watch() -> LossWatch:
        return LossWatch(Training(learning_rate=1e-3), STEPS)

    rising = [(2.0 - 0.1 * step, 1.5 + abs(step - 3) * 0.1) for step in range(8)]
    (found,) = evaluations(watch(), rising)
    assert (found.kind, found.remedies) == ("overfitting", remedies.OVERFITTING)
    assert "at step 61 the validation loss has risen for 3 evaluations, from 1.5000 to 1.8000" in found.message
    both_rise = [(2.0 + 0.1 * step, 1.5 + 0.1 * step) for step in range(8)]
    assert evaluations(watch(), both_rise) == []
    wavering = [(2.0 - 0.1 * step, 1.5 + 0.1 * (step % 2)) for step in range(8)]
    assert evaluations(watch(), wavering) == []


def books_of(**settings: Any) -> tuple[Bookkeeper, Recorder]:
    events = Recorder()
    training = Training(logging_steps=1, learning_rate=1e-3, eval_strategy="STEPS", **settings)
    return Bookkeeper(training, events, CPU, total_steps=10_000, per_epoch=100), events


def test_time_spent_on_evaluations_slows_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(bookkeeping.time, "monotonic", lambda: now)
    books, events = books_of()
    books.begin()
    for _ in range(2):
        now += 2.0
        step(books, 1.0)
        with books.evaluating():
            now += 98.0
    assert events.curve("tokens_per_second") == {1: 5.0, 2: 5.0}
    assert events.curve("samples_per_second") == {1: 0.5, 2: 0.5}


def test_processes_on_a_cpu_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was predicted is for all of them, so that what is measured is too."""
    monkeypatch.setattr(World, "sum", lambda _, values: [2 * value for value in values])
    several = World(0, 2, CPU.device)
    assert memory.peak_of_all(several) == pytest.approx(2 * memory.peak_bytes(CPU.device), rel=0.01)
    assert memory.used_of_all(several) == pytest.approx(2 * memory.used_bytes(CPU.device), rel=0.1)


def step(books: Bookkeeper, loss: float) -> None:
    books.stepped(torch.tensor(loss), torch.tensor(1.0), 1e-3, tokens=10, rows=1)


def overfit(books: Bookkeeper) -> None:
    for index in range(6):
        step(books, 2.0 - 0.1 * index)
        books.evaluated(1.0 + 0.1 * index)


@pytest.mark.parametrize(("action", "warned", "ends"), [("IGNORE", 0, False), ("WARN", 1, False), ("STOP", 1, True)])
def test_overfitting_is_acted_on_as_the_job_wants(action: str, warned: int, ends: bool) -> None:
    books, events = books_of(overfitting_action=action)
    overfit(books)
    assert books.stop_early is ends
    assert books.should_save() is ends
    assert len(events.curve("warning_overfitting")) == warned
    warnings = [event["text"] for event in events.of("log") if event["level"] == "warning"]
    assert sum("use early stopping" in text for text in warnings) == warned
    resumed, _ = books_of(overfitting_action=action)
    resumed.restore(json.loads(json.dumps(books.state())))
    assert resumed.stop_early is ends


def test_divergence_ends_the_job_unless_it_wants_otherwise() -> None:
    books, events = books_of()
    step(books, 2.0)
    with pytest.raises(LossDiverged, match="no longer a number at step 2") as caught:
        step(books, math.nan)
    assert caught.value.problems == remedies.DIVERGED
    assert list(events.curve()) == [1, 2], "what ended the training is on the curve"
    assert events.of("progress")[-1]["step"] == 2
    books, events = books_of(divergence_action="WARN")
    for loss in (2.0, math.nan, math.nan, 1.9):
        step(books, loss)
    assert list(events.curve("warning_divergence")) == [2]
    assert math.isfinite(events.curve()[4])
    assert books.loss_is_finite()


def test_a_job_that_goes_on_without_a_number_saves_none_of_it(jobs: JobFactory, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(jobs.model_dir, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][:] = float("nan")
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    training = {
        "divergence_action": "WATCH_ACTION_WARN",
        "save_strategy": "STEPS",
        "save_steps": 2,
        "logging_steps": 10,
    }
    job = jobs(model_dir=str(broken), training=training)
    events = run(job)
    assert events.of("checkpoint") == []
    assert "no checkpoint of step 4: the loss is no number" in events.text()
    assert events.kinds()[-1] == "done"


def test_waiting_for_data_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(waiting.time, "monotonic", lambda: float(next(clock)))
    waits = Waiting()
    assert waits.too_long() == ""
    said = [message for _ in waits.feed(range(8)) if (message := waits.too_long())]
    assert len(said) == 1
    assert "for the data to be prepared" in said[0]


@pytest.mark.parametrize(("level", "kinds"), [("info", {"info", "warning"}), ("warning", {"warning"})])
def test_the_log_level_is_honoured(level: str, kinds: set[str]) -> None:
    books, events = books_of(overfitting_action="WARN")
    events.log_level = level
    overfit(books)
    assert {event["level"] for event in events.of("log")} == kinds
