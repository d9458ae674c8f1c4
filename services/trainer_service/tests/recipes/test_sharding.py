"""Fully sharded training over two processes: the steps and the files of one process (F28)."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from .conftest import JobFactory
from .test_entry import Zygote, zygote

__all__ = ["zygote"]

SHARDED = {"parallelism": "PARALLELISM_FULLY_SHARDED"}
METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": "METHOD_FULL"},
    "lora": {"method": "METHOD_LORA", "lora": {"dropout": 0.0}},
}
# Sums over two processes are taken in another order.
CLOSE = 1e-4


def weights(folder: Path) -> dict[str, Any]:
    return load_file(next(folder.glob("*.safetensors")))


@pytest.mark.parametrize("method", METHODS)
def test_sharded_training_takes_the_steps_and_writes_the_files_of_one_process(
    zygote: Zygote, jobs: JobFactory, method: str
) -> None:
    training = {
        "max_steps": 6,
        "eval_strategy": "STEPS",
        "eval_steps": 3,
        "gradient_accumulation_steps": 2,
        "save_strategy": "STEPS",
        "save_steps": 3,
    }
    model = {**METHODS[method], "eval_ratio": 0.01}  # one row, so one process has none
    one_folder = jobs.directory(training={**training, "per_device_train_batch_size": 4}, language_model=model)
    one = zygote.start(one_folder)
    two_folder = jobs.directory(
        training={**training, **SHARDED, "per_device_train_batch_size": 2}, language_model=model, processes=2
    )
    two = zygote.start(two_folder)
    assert one.wait() == 0, one.log
    assert two.wait() == 0, two.log
    for name in ("loss", "grad_norm", "eval_loss"):
        assert two.curve(name) == pytest.approx(one.curve(name), rel=CLOSE)
    for part in ("output", "checkpoints/checkpoint-3"):
        ours, theirs = two_folder / part, one_folder / part
        assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()}
        assert weights(ours).keys() == weights(theirs).keys()
        for name, tensor in weights(theirs).items():
            assert weights(ours)[name].allclose(tensor, atol=CLOSE), name
    if method == "full":
        config = json.loads((two_folder / "output" / "config.json").read_text())
        assert config == json.loads((one_folder / "output" / "config.json").read_text())
        AutoModelForCausalLM.from_pretrained(two_folder / "output")


@pytest.mark.parametrize("method", METHODS)
def test_a_sharded_training_goes_on_in_one_process_and_the_other_way_round(
    zygote: Zygote, jobs: JobFactory, method: str
) -> None:
    def start(**more: Any) -> Any:
        size = 2 if more.get("processes") else 4
        training = {"max_steps": 6, "save_strategy": "STEPS", "save_steps": 3, "per_device_train_batch_size": size}
        training |= SHARDED if size == 2 else {}
        process = zygote.start(jobs.directory(training=training, language_model=METHODS[method], **more))
        assert process.wait() == 0, process.log
        return process

    sharded, alone = start(processes=2), start()
    expected = {step: loss for step, loss in alone.curve().items() if step > 3}
    for process, more in ((sharded, {}), (alone, {"processes": 2})):
        checkpoint = process.of("checkpoint")[0]["path"]
        resumed = start(resume_from=checkpoint, **more)
        assert resumed.curve() == pytest.approx(expected, rel=CLOSE)
        assert "training.parallelism was" in str(resumed.of("log"))


def test_a_sharded_classifier_is_trained_and_judged_as_one_process_does(
    zygote: Zygote, jobs: JobFactory, tmp_path: Path
) -> None:
    data = tmp_path / "texts.jsonl"
    rows = [{"text": f"text {number}", "label": "odd" if number % 2 else "even"} for number in range(24)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = {"objective": "OBJECTIVE_CLASSIFICATION", "method": "METHOD_FULL", "eval_ratio": 0.15}
    training = {"max_steps": 4, "eval_strategy": "STEPS", "eval_steps": 2}
    kinds = ({"per_device_train_batch_size": 2, **SHARDED}, {"per_device_train_batch_size": 4})
    curves = []
    for settings, processes in zip(kinds, (2, 1), strict=True):
        folder = jobs.directory(
            train_file=str(data), training={**training, **settings}, language_model=model, processes=processes
        )
        process = zygote.start(folder)
        assert process.wait() == 0, process.log
        curves.append([process.curve(name) for name in ("loss", "eval_loss", "eval_accuracy")])
    for ours, theirs in zip(*curves, strict=True):
        assert ours == pytest.approx(theirs, rel=CLOSE)


def test_bf16_is_sharded_too(zygote: Zygote, jobs: JobFactory) -> None:
    training = {"max_steps": 4, "bf16": True, "gradient_checkpointing": True}
    sharded = {**training, **SHARDED, "per_device_train_batch_size": 2}
    two = zygote.start(jobs.directory(training=sharded, language_model=METHODS["lora"], processes=2))
    one = zygote.start(jobs.directory(training=training, language_model=METHODS["lora"]))
    assert two.wait() == 0, two.log
    assert one.wait() == 0, one.log
    assert two.curve() == pytest.approx(one.curve(), rel=1e-2)
