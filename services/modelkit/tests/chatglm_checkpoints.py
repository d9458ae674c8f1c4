"""Small ChatGLM checkpoints in the original layout, and what they compute, for tests."""

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors.torch import save_file
from torch.nn import functional

from modelkit.base_models import BaseModels
from modelkit.datasets import DataCache
from modelkit.paths import AllowedRoots

LAYERS, HEADS, GROUPS, WIDTH, HIDDEN, FEED = 3, 4, 2, 16, 48, 80
ROTATED = WIDTH // 2
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="session")
def sentencepiece_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of the kind that ChatGLM has: BPE, bytes for what is unknown, a space before each text."""
    written = io.BytesIO()
    lines = [line for line in Path(json.__file__).read_text().splitlines() if line.strip()] + [
        "你好，世界。你好吗？"
    ] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=written, vocab_size=440, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2, num_threads=1,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("sentencepiece") / "tokenizer.model"
    path.write_bytes(written.getvalue())
    return path


def configuration(**more: Any) -> dict[str, Any]:
    return {
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        "auto_map": {"AutoConfig": "configuration_chatglm.ChatGLMConfig", "AutoModel": "modeling_chatglm.ChatGLM"},
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "apply_query_key_layer_scaling": True,
        "apply_residual_connection_post_layernorm": False,
        "ffn_hidden_size": FEED,
        "fp32_residual_connection": False,
        "hidden_size": HIDDEN,
        "kv_channels": WIDTH,
        "layernorm_epsilon": 1e-5,
        "multi_query_attention": True,
        "multi_query_group_num": GROUPS,
        "num_attention_heads": HEADS,
        "num_layers": LAYERS,
        "original_rope": True,
        "padded_vocab_size": 464,
        "post_layer_norm": True,
        "rmsnorm": True,
        "seq_length": 128,
        "torch_dtype": "float32",
        **more,
    }


def random_weights(config: dict[str, Any]) -> Weights:
    generator = torch.Generator().manual_seed(3)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * 0.1

    def vector(size: int) -> torch.Tensor:
        return 1 + 0.2 * torch.randn(size, generator=generator)

    fused = (HEADS + 2 * GROUPS) * WIDTH
    weights = {
        "transformer.embedding.word_embeddings.weight": matrix(config["padded_vocab_size"], HIDDEN),
        "transformer.rotary_pos_emb.inv_freq": torch.ones(ROTATED // 2),
        "transformer.encoder.final_layernorm.weight": vector(HIDDEN),
        "transformer.output_layer.weight": matrix(config["padded_vocab_size"], HIDDEN),
    }
    for number in range(LAYERS):
        prefix = f"transformer.encoder.layers.{number}."
        weights |= {
            f"{prefix}input_layernorm.weight": vector(HIDDEN),
            f"{prefix}post_attention_layernorm.weight": vector(HIDDEN),
            f"{prefix}self_attention.query_key_value.weight": matrix(fused, HIDDEN),
            f"{prefix}self_attention.dense.weight": matrix(HIDDEN, HEADS * WIDTH),
            f"{prefix}mlp.dense_h_to_4h.weight": matrix(2 * FEED, HIDDEN),
            f"{prefix}mlp.dense_4h_to_h.weight": matrix(HIDDEN, FEED),
        }
        if config["add_qkv_bias"]:
            weights[f"{prefix}self_attention.query_key_value.bias"] = vector(fused) - 1
    return weights


def reference(ids: torch.Tensor, weights: Weights, config: dict[str, Any], *, base: float, stretch: float) -> Any:
    """Logits from the description of the architecture, in plain PyTorch: ids (tokens,) to (tokens, vocabulary)."""

    def norm(values: torch.Tensor, name: str) -> torch.Tensor:
        scale = torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + config["layernorm_epsilon"])
        return values * scale * weights[name]

    def rotate(heads: torch.Tensor) -> torch.Tensor:
        """Turns neighbouring pairs of the first half of each head, (tokens, heads, width), by the position."""
        frequencies = base ** -(torch.arange(0, ROTATED, 2).double() / ROTATED)
        angles = torch.outer(torch.arange(len(heads)).double() / stretch, frequencies)[:, None]
        even, odd = heads[..., 0:ROTATED:2].double(), heads[..., 1:ROTATED:2].double()
        turned = torch.stack(
            [even * angles.cos() - odd * angles.sin(), odd * angles.cos() + even * angles.sin()], dim=-1
        )
        return torch.cat([turned.flatten(-2).float(), heads[..., ROTATED:]], dim=-1)

    tokens = len(ids)
    hidden = weights["transformer.embedding.word_embeddings.weight"][ids]
    for number in range(LAYERS):
        prefix = f"transformer.encoder.layers.{number}."
        fused = norm(hidden, f"{prefix}input_layernorm.weight") @ (
            weights[f"{prefix}self_attention.query_key_value.weight"].T
        )
        fused = fused + weights.get(f"{prefix}self_attention.query_key_value.bias", torch.zeros(()))
        queries = rotate(fused[:, : HEADS * WIDTH].view(tokens, HEADS, WIDTH))
        keys, values = fused[:, HEADS * WIDTH :].view(tokens, 2, GROUPS, WIDTH).unbind(1)
        keys = rotate(keys)
        attended = []
        for head in range(HEADS):
            group = head * GROUPS // HEADS
            scores = queries[:, head] @ keys[:, group].T / math.sqrt(WIDTH)
            scores = scores.masked_fill(torch.ones(tokens, tokens).triu(1).bool(), -math.inf)
            attended.append(scores.softmax(-1) @ values[:, group])
        hidden = hidden + torch.cat(attended, -1) @ weights[f"{prefix}self_attention.dense.weight"].T
        wide = norm(hidden, f"{prefix}post_attention_layernorm.weight") @ weights[f"{prefix}mlp.dense_h_to_4h.weight"].T
        gated = functional.silu(wide[:, :FEED]) * wide[:, FEED:]
        hidden = hidden + gated @ weights[f"{prefix}mlp.dense_4h_to_h.weight"].T
    hidden = norm(hidden, "transformer.encoder.final_layernorm.weight")
    return hidden @ weights["transformer.output_layer.weight"].T


def checkpoint(directory: Path, tokenizer: Path, config: dict[str, Any], *, files: int = 1) -> Weights:
    """Writes a checkpoint in the original layout, with code beside it that must never run."""
    directory.mkdir(parents=True)
    weights = random_weights(config)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.model").write_bytes(tokenizer.read_bytes())
    for name in ("modeling_chatglm.py", "configuration_chatglm.py", "tokenization_chatglm.py"):
        (directory / name).write_text("raise SystemExit('code of a model was run')")
    (directory / "tokenizer_config.json").write_text(
        json.dumps(
            {"tokenizer_class": "ChatGLMTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_chatglm.T", None]}}
        )
    )
    names = sorted(weights)
    if files == 1:
        save_file(weights, directory / "model.safetensors")
        return weights
    index: dict[str, str] = {}
    for part in range(files):
        shard = f"model-{part + 1:05d}-of-{files:05d}.safetensors"
        save_file({name: weights[name] for name in names[part::files]}, directory / shard)
        index |= dict.fromkeys(names[part::files], shard)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return weights


@pytest.fixture
def models(tmp_path: Path) -> BaseModels:
    """Models beneath root/; what is converted lies in converted/."""
    conversions = DataCache(tmp_path / "converted")
    return BaseModels(AllowedRoots([tmp_path / "root"]), hub_cache=tmp_path / "hub", conversions=conversions)
