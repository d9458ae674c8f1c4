"""A LoRA adapter as a GGUF file, which llama.cpp puts on a GGUF file of the base model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType

from export_service.gguf.container import Container, Entry
from export_service.gguf.errors import GgufNotPossible
from export_service.gguf.outline import Outline
from export_service.gguf.quantizer import encode
from export_service.gguf.tensors import gguf_name, outline_of, row_change
from modelkit.adapters import Adapter, Product
from modelkit.adapters.adapter import PREFIX
from modelkit.errors import Problem
from modelkit.merging import MergePlan
from modelkit.number_formats import Floats
from modelkit.tensor_files import StoredTensor


def write_adapter(base: Path, adapter: Path, target: Path) -> Path:
    """Writes the adapter and returns its path; it has its name only once it is whole.

    Raises GgufNotPossible listing what llama.cpp has no adapters for, InvalidModel, InvalidAdapter or OSError.
    """
    with Adapter(adapter) as opened, MergePlan(base) as plan:
        outline = outline_of(base, plan)
        if found := list(_problems(opened, plan, outline)):
            raise GgufNotPossible([Problem("", problem) for problem in found])
        pairs = dict(_pairs(opened, outline))
    entries = [Entry(name, values.shape, GGMLQuantizationType.F32) for name, values in pairs.items()]
    metadata = {
        "general.type": "adapter",
        "general.name": target.stem,
        "adapter.type": "lora",
        "adapter.lora.alpha": float(opened.config.alpha),
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    with Container(target, outline.architecture.name, metadata, entries) as file:
        for name, values in pairs.items():
            file.write(name, 0, encode(values, GGMLQuantizationType.F32))
    return target


def _problems(adapter: Adapter, base: MergePlan, outline: Outline) -> Iterator[str]:
    if replaced := [name for name, stored in adapter.replacements.items() if not _is_of_base(stored, base)]:
        names = ", ".join(sorted(replaced)[:3])
        yield f"the adapter replaces whole tensors ({names}), which a GGUF adapter cannot; export the merged model"
    known = {name: gguf_name(name, outline) for name in adapter.products}
    if outline.config.get("tie_word_embeddings") and {"token_embd.weight", "output.weight"} & set(known.values()):
        yield "the adapter changes embeddings or output layer, which share weights in the base; export the merged model"
    for name in (name for name, place in known.items() if place is None):
        yield f"llama.cpp's architecture {outline.architecture.name} has no place for {name}"


def _is_of_base(stored: StoredTensor, base: MergePlan) -> bool:
    """Whether a tensor that came with the adapter is the base model's own, which PEFT adds for embeddings."""
    own = base.tensors.get(stored.name.removeprefix(PREFIX).replace(".base_layer.", "."))
    return own is not None and own.shape == stored.info.shape and np.array_equal(own.read(), stored.values())


def _pairs(adapter: Adapter, outline: Outline) -> Iterator[tuple[str, Floats]]:
    """Matrices by their names in the file, shaped as llama.cpp expects them."""
    for name, product in adapter.products.items():
        known = str(gguf_name(name, outline))
        inner, outer = _matrices(product)
        outer = outer * np.float32(product.scale / (adapter.config.alpha / product.rank))
        change: Any = row_change(known, outline)[0]
        if change and not product.embedding:
            outer = change(outer)
        yield f"{known}.lora_a", np.ascontiguousarray(inner)
        yield f"{known}.lora_b", np.ascontiguousarray(outer)


def _matrices(product: Product) -> tuple[Floats, Floats]:
    """(rank, in) and (out, rank) of a linear layer; (tokens, rank) and (width, rank) of embeddings."""
    inner, outer = product.inner.values(), product.outer.values()
    return (inner.T, outer) if product.embedding else (inner, outer)
