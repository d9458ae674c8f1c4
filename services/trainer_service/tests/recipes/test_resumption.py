"""Going on from a checkpoint: as if nothing had happened, or refused, or with what differs said aloud (C39)."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from trainer_service.recipes.config import Job
from trainer_service.recipes.errors import CheckpointUnusable

from .conftest import JobFactory, run
from .test_language_model import same_weights

SAVING = {"save_strategy": "STEPS", "save_steps": 3, "max_steps": 8}
EVALUATING = {"eval_strategy": "STEPS", "eval_steps": 1}
HELD_OUT = {"eval_ratio": 0.3}
FULL = {"method": "METHOD_FULL"}

CASES: dict[str, dict[str, Any]] = {
    "plateau": {
        "training": {**EVALUATING, "lr_scheduler_type": "reduce_lr_on_plateau", "learning_rate": 0.5, "optim": "sgd"},
        "language_model": HELD_OUT,
    },
    "early stopping": {
        "training": {**EVALUATING, "early_stopping_patience": 5, "early_stopping_threshold": 10.0, "max_steps": 30},
        "language_model": HELD_OUT,
    },
    "full, accumulated": {"training": {"gradient_accumulation_steps": 3}, "language_model": FULL},
    "packed": {"training": {"per_device_train_batch_size": 2}, "language_model": {"packing": True}},
    "full, packed, bf16": {"training": {"bf16": True}, "language_model": {"packing": True, **FULL}},
    "pretraining": {"language_model": {"objective": "OBJECTIVE_PRETRAINING", "packing": True, "max_seq_length": 32}},
}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"A text about {n}. " * (n % 5 + 1)}) + "\n" for n in range(40)))
    return path


@pytest.mark.parametrize("case", CASES)
def test_killed_and_resumed_is_as_if_nothing_had_happened(jobs: JobFactory, texts: Path, case: str) -> None:
    content = dict(CASES[case])
    content["training"] = {**SAVING, **content.get("training", {})}
    if case == "pretraining":
        content["train_file"] = str(texts)
    whole_job = jobs(**content)
    whole = run(whole_job)

    def die(event: dict[str, Any]) -> None:
        if event["type"] == "checkpoint":
            raise KeyboardInterrupt

    killed_job = jobs(**content)
    with pytest.raises(KeyboardInterrupt):
        run(killed_job, die)
    resumed_job = jobs(**content, resume_from=str(killed_job.checkpoints / "checkpoint-3"))
    resumed = run(resumed_job)
    for name in ("loss", "grad_norm", "learning_rate", "eval_loss"):
        assert resumed.curve(name) == {step: value for step, value in whole.curve(name).items() if step > 3}
    assert resumed.of("done")[0]["step"] == whole.of("done")[0]["step"]
    assert same_weights(whole_job.output_dir, resumed_job.output_dir)


@pytest.fixture
def checkpoint(jobs: JobFactory) -> Path:
    """Of a LoRA, after step 3."""
    return Path(run(jobs(training=SAVING)).of("checkpoint")[0]["path"])


@pytest.mark.parametrize("missing", ["optimizer.pt", "scheduler.pt", "rng_state.pt", "adapter_model.safetensors"])
def test_a_checkpoint_that_lacks_something_is_refused_naming_it(
    jobs: JobFactory, checkpoint: Path, missing: str
) -> None:
    (checkpoint / missing).unlink()
    (checkpoint / "scaler.pt").unlink()
    with pytest.raises(CheckpointUnusable, match=f"has no .*{missing}") as caught:
        run(jobs(training=SAVING, resume_from=str(checkpoint)))
    assert len(caught.value.problems) == 2
    assert not caught.value.retryable


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("another", "its base model was tiny, whose files differ from those of another"),
        ("tiny", "the files of its base model tiny have changed since it was saved"),
    ],
)
def test_another_base_model_is_refused_naming_both(
    jobs: JobFactory, checkpoint: Path, tmp_path: Path, name: str, words: str
) -> None:
    other = tmp_path / "other"
    shutil.copytree(jobs.model_dir, other)
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"] += 0.25  # same names, shapes and sizes
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    folder = jobs.directory(training=SAVING, model_dir=str(other), resume_from=str(checkpoint))
    content = json.loads((folder / "job.json").read_text())
    content["spec"]["base_model"] = name
    (folder / "job.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointUnusable, match=f"^{checkpoint.name} is of another training: {words}$"):
        run(Job.load(folder))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"language_model": FULL}, "language_model.method was 'LORA' there and is 'FULL' now"),
        ({"language_model": {"lora": {"r": 4}}}, "language_model.lora.r was 8 there and is 4 now"),
        ({"training": {"optim": "sgd"}}, "training.optim was 'adamw_torch' there and is 'sgd' now"),
    ],
)
def test_another_method_or_shape_is_refused_naming_both(
    jobs: JobFactory, checkpoint: Path, change: dict[str, Any], words: str
) -> None:
    content = {"language_model": change.get("language_model", {}), "training": {**SAVING, **change.get("training", {})}}
    with pytest.raises(CheckpointUnusable) as caught:
        run(jobs(**content, resume_from=str(checkpoint)))
    assert words in caught.value.problems


def test_what_is_changed_on_purpose_takes_effect_and_is_said(
    jobs: JobFactory, checkpoint: Path, dataset: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(dataset.read_text() + '{"instruction": "a", "output": "b"}\n')
    training = {**SAVING, "learning_rate": 1e-3, "weight_decay": 0.1}
    events = run(jobs(training=training, train_file=str(other), resume_from=str(checkpoint)))
    warnings = [event["text"] for event in events.of("log") if event["level"] == "warning"]
    assert "warning: the dataset is not the one that checkpoint-3 was trained on" in warnings
    assert "warning: training.learning_rate was 0.005 when checkpoint-3 was saved and is 0.001 now" in warnings
    assert "warning: training.weight_decay was 0.0 when checkpoint-3 was saved and is 0.1 now" in warnings
    rates = events.curve("learning_rate")
    assert rates == pytest.approx({step: 1e-3 * (9 - step) / 8 for step in range(4, 9)})


def test_nothing_is_said_when_nothing_differs(jobs: JobFactory, checkpoint: Path) -> None:
    events = run(jobs(training=SAVING, resume_from=str(checkpoint)))
    assert [event["text"] for event in events.of("log") if event["level"] == "warning"] == []


def test_a_training_that_its_checkpoint_has_finished_says_so(jobs: JobFactory, checkpoint: Path) -> None:
    events = run(jobs(training={**SAVING, "max_steps": 2}, resume_from=str(checkpoint)))
    assert any("nothing is left to train: checkpoint-3 has all 2 steps" in event["text"] for event in events.of("log"))
    assert events.curve("loss") == {}
