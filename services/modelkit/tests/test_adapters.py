"""Adapters in PEFT form are read without PEFT, and refused where the product of two matrices is not all they do."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from modelkit.adapters import Adapter
from modelkit.errors import InvalidAdapter

MODULE = "model.layers.0.self_attn.q_proj"
MATRICES = {
    f"base_model.model.{MODULE}.lora_A.weight": torch.ones(2, 8),
    f"base_model.model.{MODULE}.lora_B.weight": torch.ones(6, 2),
}


def written(folder: Path, weights: dict[str, torch.Tensor] | None = None, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(MATRICES if weights is None else weights, folder / "adapter_model.safetensors", {"format": "pt"})
    content = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    return folder


def test_products_have_the_names_of_the_base_models_tensors(tmp_path: Path) -> None:
    with Adapter(written(tmp_path)) as adapter:
        product = adapter.products[f"{MODULE}.weight"]
        assert adapter.names == {f"{MODULE}.weight"}
        assert (product.rank, product.scale) == (2, 2.0)
        factors = product.read((6, 8))
        assert factors.rows(1, 3).tolist() == [[4.0] * 8] * 2
        assert product.read((8, 6)).rows(0, 8).shape == (8, 6)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"peft_type": None}, "peft_type is None"),
        ({"use_dora": True}, "DoRA"),
        ({"layer_replication": [[0, 2]]}, "replicated layers"),
        ({"lora_bias": True}, "biases of its own"),
        ({"init_lora_weights": "pissa"}, "changes the base model's weights"),
        ({"r": 0}, "r is 0"),
        ({"r": "8"}, "r is '8'"),
        ({"r": 3}, "means rank 3"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"rank_pattern": {"(a+)+$": 2}}, "rank_pattern has an entry that cannot be used"),
        ({"alpha_pattern": {"q_proj": "much"}}, "alpha_pattern has an entry"),
        ({"alpha_pattern": [1]}, "alpha_pattern is not an object"),
        ({"modules_to_save": "score"}, "modules_to_save is not a list"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidAdapter) as caught:
        Adapter(written(tmp_path, **config))
    assert words in str(caught.value)


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(InvalidAdapter) as caught:
        Adapter(written(tmp_path, r=-1, lora_alpha="x", use_dora=True))
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({}, "holds no tensor"),
        ({"base_model.model.q.lora_A.weight": torch.ones(2, 8)}, "lora_A and lora_B are expected"),
        ({**MATRICES, f"base_model.model.{MODULE}.lora_magnitude_vector": torch.ones(6)}, "not a matrix"),
        ({**MATRICES, "base_model.model.norm.weight": torch.ones(2, dtype=torch.int32)}, "stored as I32"),
        ({name: tensor[None, None] for name, tensor in MATRICES.items()}, "only linear layers and embeddings"),
    ],
)
def test_tensors_that_do_not_belong_are_named(tmp_path: Path, weights: dict[str, torch.Tensor], words: str) -> None:
    with pytest.raises(InvalidAdapter) as caught:
        Adapter(written(tmp_path, weights))
    assert words in str(caught.value)


def test_pickles_damaged_files_and_missing_ones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidAdapter, match="no adapter that can be read"):
        Adapter(tmp_path)
    folder = written(tmp_path / "adapter")
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InvalidAdapter, match="cannot be read"):
        Adapter(folder)
    path.rename(folder / "adapter_model.bin")
    with pytest.raises(InvalidAdapter, match="pickle, which can run code"):
        Adapter(folder)


def test_labels_of_a_classifier_fit_its_head(tmp_path: Path) -> None:
    head = {"base_model.model.score.weight": torch.ones(2, 8)}
    folder = written(tmp_path, {**MATRICES, **head}, task_type="SEQ_CLS")
    with Adapter(folder) as adapter:
        assert adapter.head is not None
        assert adapter.labels == ("LABEL_0", "LABEL_1")
    (folder / "labels.json").write_text('["no", "yes"]')
    with Adapter(folder) as adapter:
        assert adapter.labels == ("no", "yes")
    (folder / "labels.json").write_text('["no"]')
    with Adapter(folder) as adapter, pytest.raises(InvalidAdapter, match="list of 2 names"):
        _ = adapter.labels
