"""The tensors of a ChatGLM checkpoint under the names and in the shapes of "glm", one file after the other."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import torch

from modelkit.errors import InvalidModel, Problem

LAYER = re.compile(r"transformer\.encoder\.layers\.(\d+)\.(.+)")
PASSED_OVER = re.compile(r".*rotary_pos_emb\.inv_freq")
OUTSIDE = {
    "transformer.embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "transformer.encoder.final_layernorm.weight": "model.norm.weight",
    "transformer.output_layer.weight": "lm_head.weight",
}
WITHIN = {
    "input_layernorm.weight": "input_layernorm.weight",
    "post_attention_layernorm.weight": "post_attention_layernorm.weight",
    "self_attention.dense.weight": "self_attn.o_proj.weight",
    "mlp.dense_h_to_4h.weight": "mlp.gate_up_proj.weight",
    "mlp.dense_4h_to_h.weight": "mlp.down_proj.weight",
}
FUSED = "self_attention.query_key_value."


def convert_weights(shards: list[Path], target: Path, config: dict[str, Any]) -> None:
    """Writes the tensors of safetensors files to a directory; one file of them is in memory at a time.

    config is that of the converted model. Raises InvalidModel for tensors that do not belong to the architecture.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    index: dict[str, str] = {}
    size = 0
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors"
        converted: dict[str, torch.Tensor] = {}
        with safe_open(shard, framework="pt") as file:
            for stored in file.keys():  # noqa: SIM118 - the file is no mapping
                converted.update(convert_tensor(stored, file.get_tensor(stored), config))
        save_file(converted, target / name, {"format": "pt"})
        index |= dict.fromkeys(converted, name)
        size += sum(tensor.nbytes for tensor in converted.values())
    if len(shards) > 1:
        content = {"metadata": {"total_size": size}, "weight_map": dict(sorted(index.items()))}
        (target / "model.safetensors.index.json").write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))


def convert_tensor(name: str, tensor: torch.Tensor, config: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """A stored tensor as one or three tensors of the converted model. Raises InvalidModel for an unknown name."""
    if PASSED_OVER.fullmatch(name):
        return
    if name in OUTSIDE:
        yield OUTSIDE[name], tensor
        return
    match = LAYER.fullmatch(name)
    number, rest = match.groups() if match else ("", "")
    if rest in WITHIN:
        yield f"model.layers.{number}.{WITHIN[rest]}", tensor
    elif rest in (f"{FUSED}weight", f"{FUSED}bias"):
        width = config["head_dim"]
        queries, keys = config["num_attention_heads"] * width, config["num_key_value_heads"] * width
        if tensor.shape[0] != queries + 2 * keys:
            message = f"{name} has {tensor.shape[0]} rows, its configuration means {queries + 2 * keys}"
            raise InvalidModel(Problem("base_model", message))
        parts = tensor.split([queries, keys, keys])
        for letter, part in zip("qkv", parts, strict=True):
            kind = rest.removeprefix(FUSED)
            yield f"model.layers.{number}.self_attn.{letter}_proj.{kind}", part.clone()
    else:
        raise InvalidModel(Problem("base_model", f"{name} is no tensor of a ChatGLM model that is known here"))
