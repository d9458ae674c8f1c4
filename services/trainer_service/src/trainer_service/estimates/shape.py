"""The shape of a language model, read from its config.json and the headers of its weights; no weight is read."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelkit.inspection import INDEX, SINGLE, read_json
from modelkit.safetensors_header import read_header

Sizes = tuple[int, ...]

# transformer.h.0.attn.c_attn.weight: a tensor of block 0, of its module c_attn.
_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks|layer)\.(\d+)\.(.+)$")


@dataclass(frozen=True, slots=True)
class Matrix:
    """A linear layer: the name of its module and path within the block (empty outside the blocks), and its widths."""

    name: str
    path: str
    outputs: int
    inputs: int

    @property
    def size(self) -> int:
        """Its weights."""
        return self.outputs * self.inputs


@dataclass(frozen=True, slots=True)
class Shape:
    """A model as far as its memory depends on it.

    matrices are the linear layers of all blocks, embeddings those outside them, tensors the shapes of all weights.
    norm_width adds up the widths of one block's normalizations; attention_width and key_value_width are those of
    queries and of keys. gated: the feed-forward multiplies two of its wide vectors.
    """

    parameters: int
    dtype: str
    layers: int
    hidden: int
    intermediate: int
    attention_width: int
    key_value_width: int
    norm_width: int
    vocab: int
    gated: bool
    matrices: tuple[Matrix, ...]
    embeddings: tuple[Matrix, ...]
    tensors: tuple[Sizes, ...]

    def block(self) -> tuple[Matrix, ...]:
        """The linear layers of one block: those of all, as many as fall to one."""
        return self.matrices[: max(1, len(self.matrices) // max(1, self.layers))]

    @property
    def linear_parameters(self) -> int:
        """Weights in linear layers of the blocks."""
        return sum(matrix.size for matrix in self.matrices)


def read_shape(directory: Path, config: Mapping[str, Any], dtype: str) -> Shape:
    """The shape of the model in a directory. Raises HeaderError, ValueError or OSError when it cannot be read."""
    names = [SINGLE]
    if not (directory / SINGLE).is_file() or (directory / INDEX).is_file():
        names = sorted(set(read_json(directory / INDEX)["weight_map"].values()))
    tensors: dict[str, Sizes] = {}
    for name in names:
        tensors |= {tensor: info.shape for tensor, info in read_header(directory / name)[1].items()}
    return shape_of(config, tensors, dtype)


def shape_of(config: Mapping[str, Any], tensors: Mapping[str, Sizes], dtype: str = "float32") -> Shape:
    """The shape that a config.json and the shapes of named tensors describe."""
    matrices = sorted(_matrices(tensors), key=lambda found: (found[0], found[1].path))
    hidden = _number(config, "hidden_size", "n_embd", "d_model") or _narrowest(tensors)
    heads = _number(config, "num_attention_heads", "n_head") or 1
    head = _number(config, "head_dim") or hidden // heads
    keys = _number(config, "num_key_value_heads", "multi_query_group_num") or heads
    blocks = {block for block, _ in matrices}
    names = {matrix.name for _, matrix in matrices}
    intermediate = _number(config, "intermediate_size", "ffn_hidden_size", "n_inner") or 4 * hidden
    return Shape(
        parameters=sum(map(math.prod, tensors.values())),
        dtype=dtype,
        layers=_number(config, "num_hidden_layers", "num_layers", "n_layer") or len(blocks),
        hidden=hidden,
        intermediate=intermediate,
        attention_width=heads * head,
        key_value_width=keys * head,
        norm_width=_norms(tensors, {"q_norm": heads * head, "k_norm": keys * head}) or 2 * hidden,
        vocab=_number(config, "vocab_size", "padded_vocab_size") or 0,
        gated=bool(names & {"gate_proj", "gate_up_proj", "w1"}),
        matrices=tuple(matrix for _, matrix in matrices),
        embeddings=tuple(_embeddings(tensors)),
        tensors=tuple(tensors.values()),
    )


def _matrices(tensors: Mapping[str, Sizes]) -> Iterator[tuple[int, Matrix]]:
    for name, sizes in tensors.items():
        found = _BLOCK.search(name)
        if found and len(sizes) == 2 and name.endswith(".weight"):
            path = found[2].removesuffix(".weight")
            yield int(found[1]), Matrix(path.rpartition(".")[2], path, sizes[0], sizes[1])


def _embeddings(tensors: Mapping[str, Sizes]) -> Iterator[Matrix]:
    for name, sizes in tensors.items():
        if len(sizes) == 2 and name.endswith(".weight") and not _BLOCK.search(name):
            path = name.removesuffix(".weight")
            yield Matrix(path.rpartition(".")[2], "", sizes[0], sizes[1])


def _norms(tensors: Mapping[str, Sizes], by_head: Mapping[str, int]) -> int:
    """Width of the normalizations of the first block; those of by_head work on every head."""
    width = 0
    for name, sizes in tensors.items():
        found = _BLOCK.search(name)
        if found and found[1] == "0" and len(sizes) == 1 and "norm" in found[2] and name.endswith(".weight"):
            module = found[2].removesuffix(".weight").rpartition(".")[2]
            width += max(sizes[0], by_head.get(module, 0))
    return width


def _number(config: Mapping[str, Any], *names: str) -> int:
    return next((value for name in names if isinstance(value := config.get(name), int) and value > 0), 0)


def _narrowest(tensors: Mapping[str, Sizes]) -> int:
    return min((min(sizes) for sizes in tensors.values() if len(sizes) == 2), default=1)
