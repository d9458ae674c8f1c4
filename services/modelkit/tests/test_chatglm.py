"""ChatGLM2 and 3 in their original layout are converted: same logits as their description means (F1, F10, C-GLM)."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from modelkit.base_models import BaseModels
from modelkit.errors import InvalidModel
from modelkit.loading import load_model
from services.modelkit.tests.chatglm_checkpoints import (
    checkpoint,
    configuration,
    models,
    reference,
    sentencepiece_model,
)

__all__ = ["models", "sentencepiece_model"]


@pytest.mark.parametrize(("name", "changes", "base", "stretch"), [
    ("THUDM/chatglm3-6b", {}, 1e4, 1.0),
    ("THUDM/chatglm2-6b", {"add_qkv_bias": False}, 1e4, 1.0),
    ("THUDM/chatglm3-6b-32k", {"rope_ratio": 50}, 5e5, 1.0),
    ("THUDM/chatglm2-6b-32k", {"rope_ratio": 50}, 1e4, 50.0),
])  # fmt: skip
def test_a_converted_model_has_the_logits_of_the_original(
    tmp_path: Path, models: BaseModels, sentencepiece_model: Path, name: str, changes: dict[str, Any], base: float,
    stretch: float,
) -> None:  # fmt: skip
    config = configuration(**changes)
    weights = checkpoint(tmp_path / "root" / name, sentencepiece_model, config, files=3)
    found = models.resolve(name)
    assert (found.family, found.architecture, found.needs_conversion) == ("glm", "GlmForCausalLM", True)
    assert "q_proj" in found.layers
    folder = models.ready(found)
    assert len(list(folder.glob("*.safetensors"))) == 3
    model = load_model(folder, dtype=torch.float32)
    ids = torch.randint(0, 464, (70,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = model(ids[None]).logits[0]
    expected = reference(ids, weights, config, base=base, stretch=stretch)
    assert torch.allclose(logits, expected, atol=2e-4)
    assert (logits.argmax(-1) == expected.argmax(-1)).all()


def spoil(directory: Path, **changes: Any) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(("harm", "words"), [
    (lambda d: spoil(d, multi_query_attention=False), "multi_query_attention = False has no equivalent"),
    (lambda d: spoil(d, pre_seq_len=128), "pre_seq_len = 128"),
    (lambda d: spoil(d, quantization_bit=4), "quantization_bit = 4"),
    (lambda d: spoil(d, num_layers="many"), "has no num_layers, as ChatGLM2"),
    (lambda d: spoil(d, vision_config={"hidden_size": 8}), "vision_config"),
    (lambda d: (d / "tokenizer.model").unlink(), "has no tokenizer.model"),
    (lambda d: os.truncate(d / "tokenizer.model", 1000), "tokenizer.model cannot be read"),
    (lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"), "pickles"),
])  # fmt: skip
def test_what_cannot_be_converted_is_refused(
    tmp_path: Path, models: BaseModels, sentencepiece_model: Path, harm: Any, words: str
) -> None:
    source = tmp_path / "root" / "chatglm3-6b"
    checkpoint(source, sentencepiece_model, configuration())
    harm(source)
    with pytest.raises(InvalidModel, match=words):
        models.resolve("chatglm3-6b")
