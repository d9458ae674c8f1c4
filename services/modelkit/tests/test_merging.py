"""Merging by streams (issue row T31, F40): exact sums rounded once, whole or not at all, in little memory."""

import json
import shutil
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from modelkit import scratch
from modelkit.adapters import Adapter
from modelkit.base_models import BaseModels
from modelkit.datasets import DataCache
from modelkit.errors import InvalidAdapter, InvalidModel
from modelkit.identity import ORIGIN_FILE, require_same_base, weights_sha256
from modelkit.inspection import inspect
from modelkit.loading import load_weights
from modelkit.merging import MergePlan, MergeStopped, merge
from modelkit.paths import AllowedRoots
from services.modelkit.tests.chatglm_checkpoints import checkpoint, configuration, sentencepiece_model

from .adapted import IDS, adapt, stored_as

__all__ = ["sentencepiece_model"]

Models = dict[str, Path]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder, text = tmp_path_factory.mktemp("models"), Path(json.__file__).read_text()
    return {
        family: scratch.build(
            folder / family, family=family, hidden_size=32, layers=2, vocab_size=320, corpus=[text]
        ).directory
        for family in ("llama", "qwen2", "glm4", "gemma", "phi3")
    }


def logits(folder: Path, kind: Any = AutoModelForCausalLM) -> torch.Tensor:
    found: torch.Tensor = kind.from_pretrained(folder, dtype=torch.float32)(IDS).logits
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_each_weight_is_the_exact_sum_rounded_once(models: Models, tmp_path: Path, dtype: torch.dtype) -> None:
    base = stored_as(models["llama"], tmp_path / "base", dtype)
    model = adapt(base, tmp_path / "adapter")
    merge(base, tmp_path / "adapter", tmp_path / "merged")
    found, before = load_weights(tmp_path / "merged"), load_weights(base)
    layers = dict(model.named_modules())
    assert found.keys() == before.keys()
    changed = 0
    for name, tensor in found.items():
        assert tensor.dtype == dtype
        layer = layers.get(f"base_model.model.{name.removesuffix('.weight')}")
        if not hasattr(layer, "lora_A"):
            assert torch.equal(tensor, before[name])
            continue
        changed += 1
        update = layer.lora_B["default"].weight.double() @ layer.lora_A["default"].weight.double()
        exact = before[name].double() + update * 10 / 4
        unit = torch.finfo(dtype).eps * exact.abs().clamp(min=torch.finfo(dtype).tiny)
        assert ((tensor.double() - exact).abs() <= 0.5001 * unit).all()
    assert changed == 14


@pytest.mark.parametrize("family", ["llama", "qwen2", "glm4", "gemma", "phi3"])
@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True, "bias": "all"},
        {"target_modules": ["o_proj", "embed_tokens"], "bias": "lora_only"},
        {"target_modules": ["o_proj", "lm_head"]},
        {"target_modules": ["o_proj", "embed_tokens", "lm_head"]},
        {"target_modules": ["o_proj"], "modules_to_save": ["embed_tokens"]},
        {"rank_pattern": {"o_proj": 2, "^model.layers.1.mlp.down_proj": 8}, "alpha_pattern": {"layers.0.mlp": 1}},
    ],
    ids=["rslora", "embeddings", "output", "both", "whole", "patterns"],
)
def test_the_merged_model_answers_as_the_adapter_does(
    models: Models, tmp_path: Path, family: str, settings: dict[str, Any]
) -> None:
    """Some of the families tie their output layer to the embeddings: both keep what each had in training."""
    model = adapt(models[family], tmp_path / "adapter", **settings)
    plan = merge(models[family], tmp_path / "adapter", tmp_path / "merged")
    assert torch.allclose(logits(tmp_path / "merged"), model(IDS).logits, atol=2e-4)
    assert inspect(tmp_path / "merged").problems == []
    if {"embed_tokens", "lm_head"} & {*settings.get("target_modules", ()), *settings.get("modules_to_save", ())}:
        assert plan.config["tie_word_embeddings"] is False


def test_squares_are_turned_as_the_configuration_says(tmp_path: Path) -> None:
    """GPT-2 holds its input features as rows, also in matrices whose shape does not tell."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    base: Any = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=64, n_embd=32, n_layer=1, n_head=2))
    base.save_pretrained(tmp_path / "base")
    model = adapt(tmp_path / "base", tmp_path / "adapter", target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    assert torch.allclose(logits(tmp_path / "merged"), model(IDS).logits, atol=1e-4)


def test_a_base_of_several_files_stays_one_and_files_that_stay_are_equal(models: Models, tmp_path: Path) -> None:
    base = stored_as(models["llama"], tmp_path / "base", max_shard_size="40KB")
    files = sorted(path.name for path in base.glob("*.safetensors"))
    assert len(files) > 2
    model = adapt(base, tmp_path / "adapter", target_modules=["q_proj"])
    merge(base, tmp_path / "adapter", tmp_path / "merged")
    assert sorted(path.name for path in (tmp_path / "merged").glob("*.safetensors")) == files
    assert torch.allclose(logits(tmp_path / "merged"), model(IDS).logits, atol=1e-5)
    before, after = (load_file(folder / files[0]) for folder in (base, tmp_path / "merged"))
    assert any(torch.equal(before[name], after[name]) for name in before)


def test_a_classifier_is_merged_with_its_head(models: Models, tmp_path: Path) -> None:
    model = adapt(models["llama"], tmp_path / "adapter", labels=("bad", "fair", "good"))
    (tmp_path / "adapter" / "labels.json").write_text('["bad", "fair", "good"]')
    merge(models["llama"], tmp_path / "adapter", tmp_path / "merged")
    whole = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert whole.config.id2label == {0: "bad", 1: "fair", 2: "good"}
    assert torch.allclose(whole(IDS).logits, model(IDS).logits, atol=1e-5)
    assert "lm_head.weight" not in load_weights(tmp_path / "merged")


def test_tokenizer_template_and_settings_go_with_it_without_code(models: Models, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(models["llama"], base)
    config = json.loads((base / "config.json").read_text()) | {"auto_map": {"AutoModel": "evil.Model"}}
    (base / "config.json").write_text(json.dumps(config))
    (base / "generation_config.json").write_text('{"temperature": 0.6, "custom_generate": "evil"}')
    adapt(models["llama"], tmp_path / "adapter")
    (tmp_path / "adapter" / "README.md").unlink(missing_ok=True)
    merge(base, tmp_path / "adapter", tmp_path / "merged")
    found = {path.name for path in (tmp_path / "merged").iterdir()}
    assert found >= {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"}
    assert "auto_map" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    assert json.loads((tmp_path / "merged" / "generation_config.json").read_text()) == {"temperature": 0.6}


def test_progress_is_told_and_a_stop_leaves_nothing(models: Models, tmp_path: Path) -> None:
    adapt(models["llama"], tmp_path / "adapter")
    shares: list[float] = []
    merge(models["llama"], tmp_path / "adapter", tmp_path / "merged", progress=shares.append)
    assert shares == sorted(shares) and shares[-1] == 1.0 and len(shares) > 10
    with pytest.raises(MergeStopped):
        merge(models["llama"], tmp_path / "adapter", tmp_path / "other", is_stopped=lambda: True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "merged"]


def test_an_adapter_of_another_model_is_refused_with_every_problem(models: Models, tmp_path: Path) -> None:
    adapt(models["llama"], tmp_path / "adapter")
    wide = scratch.build(
        tmp_path / "wide", family="llama", hidden_size=48, layers=1, vocab_size=320, corpus=[json.__doc__ or ""]
    ).directory
    with pytest.raises(InvalidAdapter) as caught:
        merge(wide, tmp_path / "adapter", tmp_path / "merged")
    text = str(caught.value)
    assert "have no model.layers.1.mlp.up_proj.weight" in text and "do not fit" in text
    assert not (tmp_path / "merged").exists() and not list(tmp_path.glob(".*"))


def test_sums_that_a_format_cannot_hold_are_refused(models: Models, tmp_path: Path) -> None:
    base = stored_as(models["llama"], tmp_path / "base", torch.float16)
    adapt(base, tmp_path / "adapter", lora_alpha=10_000_000)
    with pytest.raises(InvalidAdapter, match="F16 cannot hold"):
        merge(base, tmp_path / "adapter", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_weights_that_are_no_floating_point_numbers_are_copied_or_refused(models: Models, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(models["llama"], base)
    weights = load_file(base / "model.safetensors")
    save_file(weights | {"counts": torch.arange(3)}, base / "model.safetensors", {"format": "pt"})
    adapt(models["llama"], tmp_path / "adapter")
    merge(base, tmp_path / "adapter", tmp_path / "merged")
    assert load_file(tmp_path / "merged" / "model.safetensors")["counts"].tolist() == [0, 1, 2]
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(weights | {name: weights[name].to(torch.int8)}, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(InvalidAdapter, match="stored as I8"):
        merge(base, tmp_path / "adapter", tmp_path / "again")


def test_a_base_on_another_file_system_is_copied_all_the_same(models: Models, tmp_path: Path) -> None:
    """The kernel refuses to copy between file systems of different kinds by itself."""
    adapt(models["llama"], tmp_path / "adapter", target_modules=["q_proj"])
    merge(models["llama"], tmp_path / "adapter", tmp_path / "merged")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        merge(models["llama"], tmp_path / "adapter", Path(folder) / "merged")
        here, there = (path / "merged" / "model.safetensors" for path in (tmp_path, Path(folder)))
        assert here.read_bytes() == there.read_bytes()


def test_a_damaged_base_is_refused(models: Models, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(models["llama"], base)
    raw = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(raw[:-1])
    adapt(models["llama"], tmp_path / "adapter")
    with pytest.raises(InvalidModel, match="cannot be read"):
        merge(base, tmp_path / "adapter", tmp_path / "merged")


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    side, base, adapter = 3072, tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    adapter.mkdir()
    name = "model.layers.{}.mlp.up_proj"
    weights = {f"{name.format(n)}.weight": torch.ones(side, side, dtype=torch.bfloat16) for n in range(2)}
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    (base / "config.json").write_text('{"model_type": "llama"}')
    factors = {
        f"base_model.model.{name.format(n)}.lora_{part}.weight": torch.ones(shape)
        for n in range(2)
        for part, shape in (("A", (4, side)), ("B", (side, 4)))
    }
    save_file(factors, adapter / "adapter_model.safetensors", {"format": "pt"})
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 4}')
    tracemalloc.start()
    try:
        merge(base, adapter, tmp_path / "merged")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * side * side / 2
    assert (load_file(tmp_path / "merged" / "model.safetensors")[f"{name.format(1)}.weight"] == 5).all()


def test_a_plan_reads_what_is_merged_in_float32(models: Models, tmp_path: Path) -> None:
    base = stored_as(models["llama"], tmp_path / "base", torch.bfloat16)
    adapt(base, tmp_path / "adapter")
    merge(base, tmp_path / "adapter", tmp_path / "merged")
    rounded = load_weights(tmp_path / "merged")
    with Adapter(tmp_path / "adapter") as adapter, MergePlan(base, adapter) as plan:
        for name, tensor in plan.tensors.items():
            found = tensor.read()
            assert found.dtype == np.float32
            assert torch.equal(torch.from_numpy(found).to(torch.bfloat16), rounded[name])


def test_a_base_that_changed_since_training_is_told(models: Models, tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(models["llama"], base)
    adapt(base, adapter)
    assert not require_same_base(adapter, base)
    noted = {"base_model": "tiny", "base_model_sha256": weights_sha256(base)}
    (adapter / ORIGIN_FILE).write_text(json.dumps(noted))
    assert require_same_base(adapter, base)
    (adapter / ORIGIN_FILE).unlink()
    (adapter / "trainer_state.json").write_text(json.dumps({"origin": noted}))
    assert require_same_base(adapter, base)
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(InvalidModel, match="not those that the adapter was trained on") as caught:
        require_same_base(adapter, base)
    assert caught.value.reason == "BASE_MODEL_CHANGED"


def test_an_adapter_of_a_chatglm_original_is_merged_on_the_converted_model(
    tmp_path: Path, sentencepiece_model: Path
) -> None:
    checkpoint(tmp_path / "chatglm", sentencepiece_model, configuration())
    roots = AllowedRoots([tmp_path])
    models = BaseModels(roots, conversions=DataCache(tmp_path / "converted"))
    base = models.ready(models.resolve(str(tmp_path / "chatglm")))
    model = adapt(base, tmp_path / "adapter", target_modules=["q_proj", "gate_up_proj"])
    merge(base, tmp_path / "adapter", tmp_path / "merged")
    assert torch.allclose(logits(tmp_path / "merged"), model(IDS).logits, atol=1e-4)
    assert inspect(tmp_path / "merged").problems == []
