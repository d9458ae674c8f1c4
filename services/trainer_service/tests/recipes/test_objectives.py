"""Every objective with every method, from a file of data to a finished model (C2, M4, F30)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from workerkit.child.stopping import StopRequest

from .conftest import JobFactory, run

ROWS: dict[str, list[dict[str, Any]]] = {
    "SUPERVISED": [{"instruction": f"Say {n}", "output": f"{n} is what I say"} for n in range(16)],
    "PRETRAINING": [{"text": f"Row {n} of a text that repeats itself, as rows do. " * 3} for n in range(16)],
    "CLASSIFICATION": [{"text": f"{word} thing {n}", "label": word} for n in range(8) for word in ("good", "bad")],
}

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # within PEFT


def train_file(folder: Path, objective: str) -> str:
    path = folder / f"{objective}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[objective]))
    return str(path)


@pytest.mark.parametrize("objective", ROWS)
@pytest.mark.parametrize("method", ["FULL", "LORA", "QLORA"])
@pytest.mark.parametrize("half", [False, True])
def test_every_objective_with_every_method(
    jobs: JobFactory, tmp_path: Path, objective: str, method: str, half: bool
) -> None:
    job = jobs(
        train_file=train_file(tmp_path, objective),
        training={
            "max_steps": 16,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "eval_strategy": "STEPS",
            "eval_steps": 8,
            "bf16": half,
        },
        language_model={
            "objective": f"OBJECTIVE_{objective}",
            "method": f"METHOD_{method}",
            "eval_ratio": 0.2,
            "lora": {"dropout": 0.0},
        },
    )
    events = run(job)
    assert events.kinds()[-1] == "done"
    curve = list(events.curve().values())
    assert sum(curve[-4:]) < sum(curve[:4])
    assert len(events.curve("eval_loss")) == 2
    kind: Any = AutoModelForSequenceClassification if objective == "CLASSIFICATION" else AutoModelForCausalLM
    if method == "FULL":
        model = kind.from_pretrained(job.output_dir)
        if objective == "CLASSIFICATION":
            assert model.config.id2label == {0: "bad", 1: "good"}
    else:
        options = {"num_labels": 2} if objective == "CLASSIFICATION" else {}
        model = PeftModel.from_pretrained(kind.from_pretrained(job.model_dir, **options), job.output_dir)
    assert torch.isfinite(model(torch.arange(3, 20)[None]).logits).all()


@pytest.mark.parametrize("method", ["FULL", "LORA"])
def test_a_classifier_goes_on_from_where_it_was_stopped(jobs: JobFactory, tmp_path: Path, method: str) -> None:
    content: dict[str, Any] = {
        "train_file": train_file(tmp_path, "CLASSIFICATION"),
        "training": {"max_steps": 6, "save_strategy": "STEPS", "save_steps": 6},
        "language_model": {"objective": "OBJECTIVE_CLASSIFICATION", "method": f"METHOD_{method}"},
    }
    whole = run(jobs(**content)).curve()
    stop = StopRequest()

    def ask(event: dict[str, Any]) -> None:
        stop.requested = stop.requested or (event["type"] == "metrics" and event["step"] == 3)

    events = run(jobs(**content), ask, stop)
    resumed = run(jobs(**content, resume_from=events.of("checkpoint")[0]["path"]))
    assert resumed.curve() == {step: loss for step, loss in whole.items() if step > 3}


@pytest.mark.parametrize(("family", "said"), [("llama", False), ("phi3", True)])
def test_packing_that_has_no_effect_is_said(
    jobs: JobFactory, tiny_models: dict[str, Path], tmp_path: Path, family: str, said: bool
) -> None:
    job = jobs(
        model_dir=str(tiny_models[family]),
        train_file=train_file(tmp_path, "SUPERVISED"),
        training={"max_steps": 1},
        language_model={"packing": True},
    )
    lines = [event["text"] for event in run(job).of("log")]
    assert any("packing has no effect" in line for line in lines) is said
