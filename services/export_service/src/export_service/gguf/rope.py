"""Rotary position embeddings that are stretched to longer texts, as llama.cpp is told about them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

FREQUENCIES, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"


@dataclass(frozen=True, slots=True)
class Scaling:
    """Metadata without the architecture's prefix, and float32 vectors by the names of their tensors."""

    metadata: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)


def parameters(config: dict[str, Any], kind: str = "full_attention") -> dict[str, Any]:
    """The rope parameters of a configuration in its newer or older spelling, of one kind of layer where they differ."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    found = found.get(kind, found)
    named = {"rope_theta": config.get("rope_theta"), "partial_rotary_factor": config.get("partial_rotary_factor")}
    known = {name: value for name, value in named.items() if value is not None}
    return {"rope_type": found.get("type", "default"), **known, **found}


def problems(rope: dict[str, Any], known: frozenset[str], architecture: str) -> Iterator[str]:
    """Why llama.cpp's architecture cannot place tokens as these parameters say."""
    kind = rope["rope_type"]
    if kind not in known:
        yield f"rope_type {kind!r} is not known to llama.cpp's architecture {architecture}"
    elif kind == "yarn":
        usual = 0.1 * math.log(rope["factor"]) + 1
        given = rope.get("attention_factor")
        unusual = given is not None and not math.isclose(given, usual, rel_tol=1e-4)
        if unusual or rope.get("mscale") or rope.get("mscale_all_dim") or rope.get("truncate") is False:
            yield "its yarn scaling has settings (attention_factor, mscale, truncate) that llama.cpp does not know"


def scaling(rope: dict[str, Any], config: dict[str, Any], rotated: int) -> Scaling:
    """What llama.cpp must know beyond the base frequency. rotated is how many values of a head are rotated."""
    kind = rope["rope_type"]
    if kind == "linear":
        return Scaling({"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])})
    if kind == "yarn":
        return Scaling(_yarn(rope, config))
    if kind == "llama3":
        return Scaling(tensors={FREQUENCIES: _llama3(rope, rotated)})
    if kind == "longrope":
        return _longrope(rope, config)
    return Scaling()


def _yarn(rope: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """arXiv:2309.00071."""
    entries = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": float(rope["factor"]),
        "rope.scaling.original_context_length": int(
            rope.get("original_max_position_embeddings") or config["max_position_embeddings"]
        ),
    }
    for theirs, ours in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
        if rope.get(theirs) is not None:
            entries[f"rope.scaling.{ours}"] = float(rope[theirs])
    return entries


def _llama3(rope: dict[str, Any], rotated: int) -> np.ndarray[Any, Any]:
    """By what Llama 3.1 divides each frequency: nothing for short waves, factor for long ones, between in between."""
    frequencies = 1.0 / rope["rope_theta"] ** (np.arange(0, rotated, 2, dtype=np.float64) / rotated)
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return np.asarray(1.0 / ((1 - smooth) / factor + smooth), np.float32)


def _longrope(rope: dict[str, Any], config: dict[str, Any]) -> Scaling:
    """arXiv:2402.13753, as Phi-3 uses it."""
    original = rope.get("original_max_position_embeddings") or config["original_max_position_embeddings"]
    stretch = config["max_position_embeddings"] / original
    attention = rope.get("attention_factor")
    if attention is None:
        attention = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
    metadata = {
        "rope.scaling.type": "longrope",
        "rope.scaling.original_context_length": int(original),
        "rope.scaling.attn_factor": float(attention),
    }
    tensors = {LONG: rope["long_factor"], SHORT: rope["short_factor"]}
    return Scaling(metadata, {name: np.asarray(values, dtype=np.float32) for name, values in tensors.items()})
