"""Whole jobs with packing, on plain text, and on classes (T27, F4, F34, F61)."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForSequenceClassification

from .conftest import JobFactory, run

SAVING = {"save_strategy": "INTERVAL_STRATEGY_STEPS", "save_steps": 2}
PACKED = {"packing": True, "lora": {"dropout": 0.0}}
EVALUATING = {"eval_strategy": "STEPS", "eval_steps": 4, "logging_steps": 1}


def text_file(folder: Path) -> Path:
    path = folder / "texts.jsonl"
    texts = [" ".join(f"{word} follows {word - 1}." for word in range(2, 4 + n % 9)) for n in range(30)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def labelled_file(folder: Path) -> Path:
    path = folder / "labelled.jsonl"
    rows = [
        {"text": f"{'good ' * (1 + n % 4)}{n}" if n % 3 else f"bad bad {n}", "label": "yes" if n % 3 else "no"}
        for n in range(36)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_without_padding_a_job_learns_the_same(jobs: JobFactory) -> None:
    lora = {"lora": {"dropout": 0.0}}
    free, padded = (run(jobs(language_model={**lora, "padding_free": free})) for free in (True, False))
    assert free.curve() == pytest.approx(padded.curve(), rel=1e-5)
    assert free.curve("grad_norm") == pytest.approx(padded.curve("grad_norm"), rel=1e-4)


def test_packing_takes_fewer_steps_over_the_same_rows(jobs: JobFactory) -> None:
    training = {"max_steps": -1, "num_train_epochs": 2.0, "per_device_train_batch_size": 2, "learning_rate": 2e-2}
    packed, plain = (run(jobs(training=training, language_model={"packing": packing})) for packing in (True, False))
    assert packed.of("started")[0]["total_steps"] < plain.of("started")[0]["total_steps"] == 22
    assert "22 rows tokenised" in packed.text()
    curve = list(packed.curve().values())
    assert curve[-1] < curve[0] - 0.2


@pytest.mark.parametrize("objective", ["OBJECTIVE_SUPERVISED", "OBJECTIVE_PRETRAINING"])
def test_a_packed_job_that_was_killed_goes_on_as_if_nothing_had_happened(
    jobs: JobFactory, tmp_path: Path, objective: str
) -> None:
    content: dict[str, Any] = {
        "training": {**SAVING, "max_steps": 7, "per_device_train_batch_size": 2},
        "language_model": {**PACKED, "objective": objective, "max_seq_length": 96},
    }
    if objective == "OBJECTIVE_PRETRAINING":
        content["train_file"] = str(text_file(tmp_path))
    whole = run(jobs(**content)).curve()

    def die(event: dict[str, Any]) -> None:
        if event["type"] == "checkpoint" and event["step"] == 4:
            raise KeyboardInterrupt

    killed = jobs(**content)
    with pytest.raises(KeyboardInterrupt):
        run(killed, die)
    resumed = run(jobs(**content, resume_from=str(killed.checkpoints / "checkpoint-4"))).curve()
    assert resumed == {step: loss for step, loss in whole.items() if step > 4}


@pytest.mark.parametrize("packing", [False, True])
def test_pretraining_learns_every_token_of_plain_text(jobs: JobFactory, tmp_path: Path, packing: bool) -> None:
    job = jobs(
        train_file=str(text_file(tmp_path)),
        training={**EVALUATING, "max_steps": 8, "learning_rate": 1e-2},
        language_model={
            "objective": "OBJECTIVE_PRETRAINING",
            "method": "METHOD_FULL",
            "packing": packing,
            "max_seq_length": 64,
            "eval_ratio": 0.2,
        },
    )
    events = run(job)
    curve = events.curve()
    assert curve[8] < curve[1] - 0.5
    assert list(events.curve("eval_loss")) == [4, 8]
    assert events.curve("eval_perplexity")[8] < events.curve("eval_perplexity")[4]


@pytest.mark.parametrize("padding_free", [False, True])
def test_a_classifier_tells_classes_apart(jobs: JobFactory, tmp_path: Path, padding_free: bool) -> None:
    job = jobs(
        train_file=str(labelled_file(tmp_path)),
        training={**EVALUATING, "max_steps": 24, "eval_steps": 24, "learning_rate": 1e-2},
        language_model={
            "objective": "OBJECTIVE_CLASSIFICATION",
            "method": "METHOD_FULL",
            "eval_ratio": 0.25,
            "padding_free": padding_free,
        },
    )
    events = run(job)
    assert events.curve("eval_accuracy")[24] >= 0.8
    assert events.curve("eval_f1")[24] >= 0.7
    assert "perplexity" not in events.of("metrics")[0]["values"]
    model = AutoModelForSequenceClassification.from_pretrained(job.output_dir)
    assert set(model.config.id2label.values()) == {"no", "yes"}
