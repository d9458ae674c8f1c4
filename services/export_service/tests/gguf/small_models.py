"""Small models whose every weight matters, and what llama.cpp and transformers make of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader
from safetensors.numpy import load_file, save_file

from export_service.parity import llama, reference
from export_service.parity.gate import TEXTS
from modelkit import scratch
from modelkit.loading import load_tokenizer

ROOT = Path(__file__).parents[4]
CORPUS = [(ROOT / name).read_text() for name in ("README.md", "README.zh.md", "CONTRIBUTING.md", "docs/guide.md")]
SEQUENCE = tuple(range(3, 103))


def small_model(folder: Path, family: str, *, hidden_size: int = 64, vocab_size: int = 700, seed: int = 0) -> Path:
    """A model of a family whose attention is far from even and whose norms and biases are far from their beginnings."""
    base = scratch.build(
        folder, family=family, corpus=CORPUS, hidden_size=hidden_size, layers=2, vocab_size=vocab_size
    ).directory
    weights, random = load_file(base / "model.safetensors"), np.random.default_rng(seed)
    for name, values in weights.items():
        stirred = values + random.normal(0, 0.1, values.shape) if values.ndim == 1 else 4 * values
        weights[name] = stirred.astype(values.dtype)
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    return base


def read_tensors(path: Path) -> dict[str, tuple[str, bytes]]:
    """Type and bytes of each tensor of a GGUF file."""
    return {tensor.name: (tensor.tensor_type.name, tensor.data.tobytes()) for tensor in GGUFReader(path).tensors}


def field(path: Path, key: str) -> Any:
    """A value of a GGUF file's metadata."""
    found = GGUFReader(path).fields.get(key)
    return found.contents() if found else None


def difference(model: Any, file: Path, *, adapter: Path | None = None, sequence: Sequence[int] = SEQUENCE) -> float:
    """The largest difference of logits between a model and a GGUF file, over the spread of the model's."""
    answer = llama.ask(file, [sequence], [], adapter=adapter)
    wanted = reference.read(model, [sequence])
    return float(np.abs(answer.readings.logits - wanted.logits).max() / wanted.logits.std())


def texts(base: Path) -> list[str]:
    """Texts that tokenizers trip over, and a conversation as the model's template writes it."""
    tokenizer: Any = load_tokenizer(base)
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": " 你好\n\nworld 123 "},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Why?"},
    ]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    special = "".join(str(token) for token in tokenizer.all_special_tokens)
    return [*TEXTS, rendered, f"{special} a {special}", *CORPUS[1].splitlines()[:40]]


def numbers(base: Path, text: str) -> list[int]:
    """The text's tokens as training read them."""
    tokenizer: Any = load_tokenizer(base)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def torch_model(base: Path, adapter: Path | None = None) -> Any:
    """The model in float32, with the adapter on it by PEFT."""
    torch.manual_seed(0)
    return reference.adapted_model(base, adapter)
