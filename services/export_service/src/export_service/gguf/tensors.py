"""The tensors of a GGUF file: what each is called, and how its rows come from those of the merged model."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export_service.gguf.errors import GgufNotPossible, not_possible
from export_service.gguf.outline import Outline, outline_problems
from modelkit.adapters import Factors
from modelkit.errors import Problem
from modelkit.loading import load_config
from modelkit.merging import MergedTensor, MergePlan
from modelkit.number_formats import Floats, from_float32, is_finite, to_float32

LAYER = re.compile(r"(?:model\.)?layers\.(\d+)\.(.+)\.(weight|bias)")
PASSED_OVER = re.compile(r".*\.(inv_freq|masked_bias|rotary_emb\..*)")
KINDS = ("weight", "bias")
Change = Callable[[Floats], Floats]


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor of the file, whose rows come from as many rows of one of the model, or from a constant vector.

    Its rows can be made in blocks of a multiple of unit. dtype names the type that it would have without quantization.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    source: MergedTensor | Floats
    change: Change | None = None
    unit: int = 1

    def factors(self) -> Factors | None:
        """What rows needs to be passed; see MergedTensor.factors."""
        return self.source.factors() if isinstance(self.source, MergedTensor) else None

    def rows(self, first: int, last: int, factors: Factors | None = None) -> Floats:
        """Rows in float32, rounded as the merged model stores them. Raises GgufNotPossible for what is no number."""
        if not isinstance(self.source, MergedTensor):
            return self.source[first:last]
        rows = self.source.rows(first, last, factors)
        if not self.source.is_unchanged:
            stored = from_float32(rows, self.dtype)
            rows = to_float32(stored, self.dtype)
        if not is_finite(rows, "F32"):
            raise not_possible(f"{self.source.name} has values that are no finite numbers, or too large for its type")
        return self.change(rows) if self.change else rows


def outline_of(base: Path, plan: MergePlan) -> Outline:
    """That of a merged model. Raises InvalidModel, or GgufNotPossible listing why llama.cpp cannot run it."""

    config = load_config(base).to_dict()
    config["tie_word_embeddings"] = plan.config.get("tie_word_embeddings", config.get("tie_word_embeddings"))
    if found := list(outline_problems(config)):
        raise GgufNotPossible([Problem("", problem) for problem in found])
    return Outline(config)


def planned_tensors(plan: MergePlan, outline: Outline) -> list[PlannedTensor]:
    """Every tensor of the file. Raises GgufNotPossible naming the model's tensors that llama.cpp does not know."""
    found, unknown = [], []
    for name, tensor in plan.tensors.items():
        if PASSED_OVER.fullmatch(name):
            continue
        known = gguf_name(name, outline)
        if known is None:
            unknown.append(name)
        else:
            change, unit = row_change(known, outline)
            found.append(PlannedTensor(known, tensor.shape, tensor.dtype, tensor, change, unit))
    if unknown:
        names = ", ".join(sorted(unknown)[:5])
        raise not_possible(f"llama.cpp's architecture {outline.architecture.name} has no place for {names}")
    found = list(_with_output(found, outline, tied=bool(outline.config.get("tie_word_embeddings"))))
    constants = outline.scaling.tensors
    return [*found, *(PlannedTensor(name, vector.shape, "F32", vector) for name, vector in constants.items())]


def gguf_name(name: str, outline: Outline) -> str | None:
    """What llama.cpp calls a tensor of the model, or None for one that it does not know."""
    architecture = outline.architecture
    if match := LAYER.fullmatch(name):
        number, module, kind = match.groups()
        known = architecture.layer.get(module)
        return f"blk.{number}.{known}.{kind}" if known and int(number) < outline.layers else None
    module, _, kind = name.rpartition(".")
    known = architecture.outside.get(module) or architecture.outside.get(f"model.{module}")
    return f"{known}.{kind}" if known and kind in KINDS else None


def _with_output(found: list[PlannedTensor], outline: Outline, *, tied: bool) -> Iterator[PlannedTensor]:
    """The tensors with an output layer of its own where llama.cpp wants one, and without where none can be."""
    wants = outline.architecture.output_layer
    output = next((tensor for tensor in found if tensor.name == "output.weight"), None)
    embeddings = next((tensor for tensor in found if tensor.name == "token_embd.weight"), None)
    if embeddings is None:
        raise not_possible("the model has no embeddings")
    if output and wants == "tied" and not tied:
        message = "shares its output layer with its embeddings, which this adapter changes separately"
        raise not_possible(f"llama.cpp's architecture {outline.architecture.name} {message}; train without either")
    yield from (tensor for tensor in found if tensor is not output or not tied)
    if output is None and wants == "own":
        yield PlannedTensor("output.weight", embeddings.shape, embeddings.dtype, embeddings.source)


def row_change(name: str, outline: Outline) -> tuple[Change | None, int]:
    """What happens to the rows of a tensor, and how many rows belong together."""
    kind = name.split(".")[2] if name.startswith("blk.") else name.partition(".")[0]
    architecture = outline.architecture
    scale = np.float32(outline.query_scale if kind == architecture.queries else 1)
    if architecture.offset_norms and kind.endswith("_norm"):
        return (lambda rows: (rows + 1) * scale), 1
    if architecture.pairs and kind in ("attn_q", "attn_k"):
        return (lambda rows: in_pairs(rows, outline.head_width)), outline.head_width
    return ((lambda rows: rows * scale) if scale != 1 else None), 1


def in_pairs(rows: NDArray[Any], head_width: int) -> NDArray[Any]:
    """Rows of whole heads, those that are rotated together side by side instead of half a head apart."""
    heads = rows.reshape(-1, 2, head_width // 2, *rows.shape[1:])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(rows.shape)
