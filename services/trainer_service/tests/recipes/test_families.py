"""Every family of the documents is trained, saved and read again by the libraries that users have (F10, F33)."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from modelkit import scratch
from modelkit.loading import load_tokenizer
from trainer_service.recipes.model_setup import prepare_model
from trainer_service.recipes.optimizers import Optimisation
from trainer_service.recipes.precision import Precision
from trainer_service.recipes.saving import save_final

from .conftest import CPU, JobFactory, run

FLOAT32 = Precision(torch.float32, torch.float32, torch.float32)
LABELS = ("bad", "fair", "good")

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # within PEFT


def train_three_steps(model: Any, job: Any, targets: torch.Tensor, ids: torch.Tensor) -> list[float]:
    optimisation = Optimisation(model, job.finetune.training, FLOAT32, CPU.device, total_steps=3)
    losses = []
    for _ in range(3):
        logits = model(input_ids=ids, use_cache=False).logits
        loss = functional.cross_entropy(logits.flatten(0, -2), targets.flatten())
        optimisation.backward(loss)
        optimisation.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("family", scratch.FAMILIES)
@pytest.mark.parametrize("method", ["METHOD_LORA", "METHOD_FULL"])
def test_a_family_is_trained_saved_and_read_again(
    jobs: JobFactory, tiny_models: dict[str, Path], family: str, method: str
) -> None:
    base = tiny_models[family]
    job = jobs(
        model_dir=str(base),
        training={"lr_scheduler_type": "constant", "learning_rate": 1e-2},
        language_model={"method": method, "lora": {"dropout": 0.0}},
    )
    model = prepare_model(job, FLOAT32, CPU)
    ids = torch.randint(40, 320, (2, 24), generator=torch.Generator().manual_seed(0))
    losses = train_three_steps(model, job, ids.roll(-1, dims=1), ids)
    assert losses[2] < losses[1] < losses[0]
    save_final(model, load_tokenizer(base), job.output_dir, stored=torch.float32)
    model.eval()
    if method == "METHOD_FULL":
        again = AutoModelForCausalLM.from_pretrained(job.output_dir)
    else:
        again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), job.output_dir)
    again.eval()
    with torch.no_grad():
        assert torch.allclose(again(ids).logits, model(ids).logits, atol=1e-5)


@pytest.mark.parametrize("family", [name for name in scratch.FAMILIES if name not in ("llama2", "qwen1.5", "qwen2.5")])
@pytest.mark.parametrize("method", ["METHOD_LORA", "METHOD_FULL", "METHOD_QLORA"])
def test_a_family_classifies(jobs: JobFactory, tiny_models: dict[str, Path], family: str, method: str) -> None:
    """C2: the head is trained whatever the method, and read again with the names of the classes."""
    base = tiny_models[family]
    job = jobs(
        model_dir=str(base),
        training={"lr_scheduler_type": "constant", "learning_rate": 1e-2},
        language_model={
            "objective": "OBJECTIVE_CLASSIFICATION",
            "method": method,
            "lora": {"dropout": 0.0},
            "quantization": {"compute_dtype": "float32"},
        },
    )
    model = prepare_model(job, FLOAT32, CPU, labels=LABELS)
    assert model.config.id2label == dict(enumerate(LABELS))
    assert model.config.pad_token_id is not None
    ids = torch.randint(40, 320, (6, 12), generator=torch.Generator().manual_seed(0))
    losses = train_three_steps(model, job, torch.arange(6) % 3, ids)
    assert losses[2] < losses[0]
    save_final(model, load_tokenizer(base), job.output_dir, stored=torch.float32)
    model.eval()
    if method == "METHOD_FULL":
        again = AutoModelForSequenceClassification.from_pretrained(job.output_dir)
        assert again.config.label2id == {"bad": 0, "fair": 1, "good": 2}
    else:
        assert (job.output_dir / "labels.json").read_text().split('"')[1::2] == list(LABELS)
        whole = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
        again = PeftModel.from_pretrained(whole, job.output_dir)
    again.eval()
    with torch.no_grad():
        error = (again(ids).logits - model(ids).logits).abs().max()
    assert error < (0.5 if method == "METHOD_QLORA" else 1e-5)


@pytest.mark.parametrize("family", ["llama2", "mistral", "qwen3", "glm", "phi3", "gemma2", "gemma3"])
def test_a_whole_job_on_a_family(jobs: JobFactory, tiny_models: dict[str, Path], family: str) -> None:
    events = run(
        jobs(
            model_dir=str(tiny_models[family]),
            training={"max_steps": 10, "learning_rate": 2e-2, "lr_scheduler_type": "constant"},
            language_model={"max_seq_length": 192},
        )
    )
    curve = events.curve()
    assert min(curve[9], curve[10]) < curve[1] - 0.1
