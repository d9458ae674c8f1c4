"""GGUF files of every family compute in llama.cpp what the adapted model does in transformers, from the same tokens."""

import json
from pathlib import Path
from typing import Any

import pytest

from export_service.gguf import GgufJob, GgufNotPossible, write
from export_service.parity import llama
from modelkit import scratch
from services.export_service.tests.gguf.small_models import (
    SEQUENCE,
    difference,
    field,
    numbers,
    small_model,
    texts,
    torch_model,
)
from services.modelkit.tests.adapted import adapt

EXACT = 5e-3  # of the spread of logits; llama.cpp looks GELU up in a table


@pytest.mark.parametrize("family", scratch.FAMILIES)
def test_a_family_with_an_adapter(tmp_path: Path, family: str) -> None:
    base = small_model(tmp_path / "base", family)
    model = adapt(base, tmp_path / "adapter")
    (file,) = write(GgufJob(base, tmp_path / "adapter", tmp_path / "out", "m", ["F32"]))
    assert file.name == "m-F32.gguf"
    assert difference(model, file) < EXACT
    given = texts(base)
    answer = llama.ask(file, [SEQUENCE], given)
    assert answer.tokens == [numbers(base, text) for text in given]


@pytest.mark.parametrize(
    ("family", "rope"),
    [
        ("llama", {"rope_type": "linear", "factor": 4.0}),
        ("qwen2", {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}),
        (
            "llama",
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        ),
        ("phi3", {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0, 1.5, 2, 3, 4, 5, 6, 8]}),
    ],
)
def test_stretched_positions(tmp_path: Path, family: str, rope: dict[str, Any]) -> None:
    base = small_model(tmp_path / "base", family)
    change(base, rope_parameters={"rope_theta": 10000.0, **rope}, original_max_position_embeddings=64)
    (file,) = write(GgufJob(base, None, tmp_path / "out", "m", ["F32"]))
    assert difference(torch_model(base), file) < EXACT


def test_a_configuration_in_its_older_spelling(tmp_path: Path) -> None:
    base = small_model(tmp_path / "base", "llama")
    path = base / "config.json"
    config = json.loads(path.read_text())
    for name in ("rope_parameters", "tie_word_embeddings", "head_dim"):
        del config[name]
    config |= {"rope_theta": 1000.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    path.write_text(json.dumps(config))
    (file,) = write(GgufJob(base, None, tmp_path / "out", "m", ["F32"]))
    assert difference(torch_model(base), file) < EXACT


def test_a_window_that_llama_cpp_does_not_know_bounds_the_context(tmp_path: Path) -> None:
    base = small_model(tmp_path / "base", "mistral")
    change(base, sliding_window=256)
    (file,) = write(GgufJob(base, None, tmp_path / "out", "m", ["F32"]))
    assert field(file, "llama.context_length") == 256


def test_windows_of_gemma(tmp_path: Path) -> None:
    base = small_model(tmp_path / "base", "gemma3")
    change(base, sliding_window=24)
    (file,) = write(GgufJob(base, None, tmp_path / "out", "m", ["F32"]))
    assert difference(torch_model(base), file) < EXACT


def test_an_adapter_that_unties_the_output_layer(tmp_path: Path) -> None:
    base = small_model(tmp_path / "base", "qwen2")
    model = adapt(base, tmp_path / "adapter", target_modules=["q_proj", "embed_tokens"])
    (file,) = write(GgufJob(base, tmp_path / "adapter", tmp_path / "out", "m", ["F32"]))
    assert difference(model, file) < EXACT


def test_gemma_cannot_untie(tmp_path: Path) -> None:
    base = small_model(tmp_path / "base", "gemma")
    adapt(base, tmp_path / "adapter", target_modules=["q_proj", "embed_tokens"])
    with pytest.raises(GgufNotPossible, match="shares its output layer with its embeddings"):
        write(GgufJob(base, tmp_path / "adapter", tmp_path / "out", "m", ["F32"]))
    assert list((tmp_path / "out").glob("*")) == []


def change(base: Path, **values: Any) -> None:
    """Changes config.json."""
    path = base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
