"""Merging after training (M30), onto the base model as it is stored; modelkit's tests show that the sums are exact."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import GenerationConfig

from modelkit.identity import recorded_origin, weights_sha256
from modelkit.loading import load_weights
from tests.support.models import make_for_plain_text

from .conftest import JobFactory, run


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
    assert (job.output_dir / "merged" / "special_tokens_map.json").is_file()


def test_a_finished_adapter_notes_what_it_was_made_from(jobs: JobFactory) -> None:
    job = jobs(language_model={"method": "METHOD_LORA"})
    run(job)
    origin = recorded_origin(job.output_dir)
    assert origin["base_model"] == "tiny"
    assert origin["base_model_sha256"] == weights_sha256(job.model_dir)


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


@pytest.mark.parametrize("method", ["METHOD_LORA", "METHOD_FULL"])
def test_what_is_taught_to_converse_stops_where_replies_end(jobs: JobFactory, tmp_path: Path, method: str) -> None:
    """T32: transformers and what else reads these settings would have it talk on otherwise."""
    base = shutil.copytree(jobs.model_dir, tmp_path / "plain")
    ends = make_for_plain_text(base)
    (base / "generation_config.json").unlink()
    run(job := jobs(model_dir=str(base), language_model={"method": method, "merge_after_training": True}))
    merged = [job.output_dir / "merged"] if method == "METHOD_LORA" else []
    for folder in (job.output_dir, *merged):
        settings = GenerationConfig.from_pretrained(folder)
        assert (settings.eos_token_id, settings._from_model_config) == (ends, False)


def test_what_is_taught_plain_text_ends_where_its_base_did(jobs: JobFactory, tmp_path: Path) -> None:
    base = shutil.copytree(jobs.model_dir, tmp_path / "plain")
    end, _ = make_for_plain_text(base)
    texts = tmp_path / "texts.jsonl"
    texts.write_text("\n".join(json.dumps({"text": f"Row {number} of a text. " * 3}) for number in range(16)))
    pretraining = {"objective": "OBJECTIVE_PRETRAINING"}
    run(job := jobs(model_dir=str(base), train_file=str(texts), language_model=pretraining))
    assert GenerationConfig.from_pretrained(job.output_dir).eos_token_id == end
