"""TensorBoard files of a training and its log_history, also after it was resumed (C37, C38)."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trainer_service.recipes.curves import tag

from .conftest import JobFactory, Recorder, run

TRAINING = {"max_steps": 6, "save_strategy": "STEPS", "save_steps": 3, "eval_strategy": "STEPS", "eval_steps": 2}
HELD_OUT = {"eval_ratio": 0.3}


def curves(runs: Path) -> dict[str, dict[int, float]]:
    """The points by tag and step as TensorBoard reads them."""
    read = EventAccumulator(str(runs))
    read.Reload()
    return {name: {point.step: point.value for point in read.Scalars(name)} for name in read.Tags()["scalars"]}


def points(events: Recorder, name: str) -> Any:
    return pytest.approx(events.curve(name), rel=1e-6)


def test_tags_are_those_of_transformers() -> None:
    assert [tag(name) for name in ("loss", "eval_loss", "test_f1", "grad_norm")] == [
        "train/loss",
        "eval/loss",
        "test/f1",
        "train/grad_norm",
    ]


def test_the_finished_model_comes_with_curves_of_the_whole_training(jobs: JobFactory) -> None:
    job = jobs(training=TRAINING, language_model=HELD_OUT)
    events = run(job)
    drawn = curves(job.output_dir / "runs")
    assert list(drawn["train/loss"]) == [1, 2, 3, 4, 5, 6]
    assert drawn["train/loss"] == points(events, "loss")
    assert drawn["eval/loss"] == points(events, "eval_loss")
    for name in ("perplexity", "learning_rate", "grad_norm", "tokens_per_second", "memory_bytes", "epoch"):
        assert list(drawn[f"train/{name}"])[:6] == [1, 2, 3, 4, 5, 6]
    assert drawn["train/perplexity"][4] == pytest.approx(math.exp(drawn["train/loss"][4]), rel=1e-5)
    assert drawn["eval/perplexity"][4] == pytest.approx(math.exp(drawn["eval/loss"][4]), rel=1e-5)


def test_curves_of_a_resumed_training_begin_at_its_first_step(jobs: JobFactory) -> None:
    whole = run(jobs(training=TRAINING, language_model=HELD_OUT))
    checkpoint = Path(whole.of("checkpoint")[0]["path"])
    job = jobs(training=TRAINING, language_model=HELD_OUT, resume_from=str(checkpoint))
    run(job)
    drawn = curves(job.output_dir / "runs")
    assert drawn["train/loss"] == points(whole, "loss")
    assert drawn["eval/loss"] == points(whole, "eval_loss")
    (file,) = (job.output_dir / "runs").iterdir()
    assert file.name.startswith("events.out.tfevents.")


def test_a_checkpoint_holds_the_history_and_the_seed(jobs: JobFactory) -> None:
    events = run(jobs(training={**TRAINING, "seed": 7}, language_model=HELD_OUT))
    state = json.loads((Path(events.of("checkpoint")[0]["path"]) / "trainer_state.json").read_text())
    history = state["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2, 3]
    assert [entry["step"] for entry in history if "eval_loss" in entry] == [2]
    assert {"loss", "grad_norm", "learning_rate", "epoch", "step"} <= history[0].keys()
    assert (state["seed"], state["global_step"], state["max_steps"]) == (7, 3, 6)


def test_the_last_word_is_the_peak_of_memory(jobs: JobFactory) -> None:
    events = run(jobs(predicted_memory_bytes=2 * 10**9))
    last = events.of("metrics")[-1]["values"]
    assert last["memory_peak_bytes"] > 1 << 27
    assert last["memory_predicted_bytes"] == 2 * 10**9
    assert "times the 2.0 GB that were predicted" in events.text()


def test_the_log_tells_loss_rate_norm_and_speed(jobs: JobFactory) -> None:
    """C35."""
    (line,) = [event["text"] for event in run(jobs()).of("log") if event["text"].startswith("step 2/6: ")]
    assert re.search(r"loss \d.*, gradient norm \d.*, learning rate \d.*, \d.* samples/s, \d+ tokens/s$", line)
