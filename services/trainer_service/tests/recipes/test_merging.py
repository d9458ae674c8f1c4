"""Merging after training (M30): one exact sum, rounded once, file by file, onto the base model as it is stored."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from modelkit.inspection import inspect
from modelkit.loading import load_model, load_tokenizer, load_weights
from trainer_service.recipes.adapters import add_adapter
from trainer_service.recipes.config import Lora
from trainer_service.recipes.merging import Changes, MergeFailed, merge

from .conftest import JobFactory, run

IDS = torch.arange(3, 40)[None]


def adapted(base: Path, labels: tuple[str, ...] = (), **lora: Any) -> Any:
    """A model with an adapter that does something."""
    torch.manual_seed(1)
    whole = load_model(base, dtype=torch.float32, labels=labels or None)
    model = add_adapter(whole, Lora(**{"r": 4, **lora}), base_model=base, classifies=bool(labels))
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.1 if "lora_" in name else 0.5)
    return model.eval()


def merged(model: Any, base: Path, target: Path) -> Path:
    target.mkdir()
    merge(base, Changes.of(model), load_tokenizer(base), target)
    return target


def stored_as(source: Path, target: Path, **options: Any) -> Path:
    model = AutoModelForCausalLM.from_pretrained(source, dtype=options.pop("dtype", torch.float32))
    model.save_pretrained(target, **options)
    load_tokenizer(source).save_pretrained(target)
    return target


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_each_weight_is_the_exact_sum_rounded_once(jobs: JobFactory, tmp_path: Path, dtype: torch.dtype) -> None:
    base = stored_as(jobs.model_dir, tmp_path / "base", dtype=dtype)
    model = adapted(base, alpha=10)
    found = load_weights(merged(model, base, tmp_path / "merged"))
    before = load_weights(base)
    assert found.keys() == before.keys()
    changed = 0
    for name, tensor in found.items():
        assert tensor.dtype == dtype
        module = f"base_model.model.{name.removesuffix('.weight')}"
        layer = dict(model.named_modules()).get(module)
        if not hasattr(layer, "lora_A"):
            assert torch.equal(tensor, before[name])
            continue
        changed += 1
        update = layer.lora_B["default"].weight.double() @ layer.lora_A["default"].weight.double()
        exact = before[name].double() + update * 10 / 4
        step = torch.finfo(dtype).eps * exact.abs().clamp(min=torch.finfo(dtype).tiny)
        assert ((tensor.double() - exact).abs() <= 0.5001 * step + 1e-7).all()
    assert changed == 14


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_merged_model_answers_as_the_adapter_does(
    tiny_models: dict[str, Path], tmp_path: Path, family: str
) -> None:
    """With adapters on embeddings and output layer, which the second family ties to each other."""
    base = tiny_models[family]
    model = adapted(base, target_modules=("q_proj", "embed_tokens", "lm_head"), bias="all")
    folder = merged(model, base, tmp_path / "merged")
    whole = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.allclose(whole(IDS).logits, model(IDS).logits, atol=1e-4)
    assert inspect(folder).problems == []
    assert not whole.config.tie_word_embeddings


def test_a_base_of_several_files_stays_one(jobs: JobFactory, tmp_path: Path) -> None:
    base = stored_as(jobs.model_dir, tmp_path / "base", max_shard_size="40KB")
    files = sorted(path.name for path in base.glob("*.safetensors"))
    assert len(files) > 2
    model = adapted(base)
    folder = merged(model, base, tmp_path / "merged")
    assert sorted(path.name for path in folder.glob("*.safetensors")) == files
    assert torch.allclose(AutoModelForCausalLM.from_pretrained(folder)(IDS).logits, model(IDS).logits, atol=1e-5)


def test_a_classifier_is_merged_with_its_head(jobs: JobFactory, tmp_path: Path) -> None:
    model = adapted(jobs.model_dir, labels=("bad", "fair", "good"))
    folder = merged(model, jobs.model_dir, tmp_path / "merged")
    whole = AutoModelForSequenceClassification.from_pretrained(folder)
    assert whole.config.id2label == {0: "bad", 1: "fair", 2: "good"}
    assert torch.allclose(whole(IDS).logits, model(IDS).logits, atol=1e-5)


def test_a_base_that_lacks_a_changed_tensor_is_refused(jobs: JobFactory, tmp_path: Path) -> None:
    changes = Changes.of(adapted(jobs.model_dir))
    changes.products["model.layers.9.mlp.up_proj.weight"] = (torch.ones(2, 1), torch.ones(1, 2))
    with pytest.raises(MergeFailed, match=r"no model\.layers\.9"):
        merge(jobs.model_dir, changes, load_tokenizer(jobs.model_dir), tmp_path)


@pytest.mark.parametrize("method", ["METHOD_LORA", "METHOD_QLORA"])
def test_a_task_that_asks_for_it_leaves_the_merged_model_too(jobs: JobFactory, method: str) -> None:
    job = jobs(language_model={"method": method, "merge_after_training": True, "lora": {"alpha": 32}})
    events = run(job)
    assert events.kinds()[-1] == "done"
    base, found = load_weights(job.model_dir), load_weights(job.output_dir / "merged")
    adapter = load_file(job.output_dir / "adapter_model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    left, right = (adapter[f"base_model.model.{name}.lora_{part}.weight"].double() for part in "BA")
    exact = base[f"{name}.weight"].double() + left @ right * 32 / 8
    assert torch.allclose(found[f"{name}.weight"].double(), exact, atol=1e-7)
    tokenizer = json.loads((job.output_dir / "merged" / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"]


def test_a_merge_that_fails_costs_nobody_the_adapter(jobs: JobFactory, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(jobs.model_dir, base)

    def lose_the_base(event: dict[str, Any]) -> None:
        if event["type"] == "metrics" and event["step"] == 6:
            (tmp_path / "other").write_bytes(b"not what it was")
            (tmp_path / "other").rename(base / "model.safetensors")

    job = jobs(model_dir=str(base), language_model={"merge_after_training": True})
    events = run(job, lose_the_base)
    assert events.kinds()[-1] == "done"
    assert "could not be merged" in events.text()
    assert (job.output_dir / "adapter_model.safetensors").is_file()
    assert not (job.output_dir / "merged").exists()
    assert not list(job.output_dir.glob(".*"))


def test_a_full_training_has_nothing_to_merge(jobs: JobFactory) -> None:
    job = jobs(language_model={"method": "METHOD_FULL", "merge_after_training": True})
    assert "no adapter to merge" in run(job).text()
    assert not (job.output_dir / "merged").exists()
