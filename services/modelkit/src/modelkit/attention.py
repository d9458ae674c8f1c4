"""Attention over sequences that lie end to end in one row, each seeing itself alone (FlashAttention, arXiv:2205.14135).

A mask that keeps the sequences of a row apart costs the square of the row's length, though most of it is masked out;
here every sequence is attended to by itself, so the cost is that of the sequences. The models of transformers call it
by the name SEGMENTED, and hand it the `segments` that they were called with.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface

SEGMENTED = "segmented"
# Architectures whose layers attend through the interface with nothing but causality and a sliding window.
ARCHITECTURES = frozenset(
    {"llama", "mistral", "qwen2", "qwen3", "glm", "glm4", "phi", "gemma", "olmo2", "starcoder2", "smollm3"}
)
SHORT = 320  # up to here the CPU's kernel takes longer backwards in bfloat16 than in float32
VARLEN_FORMATS = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Segments:
    """The lengths of the sequences of a row, in tokens, in their order; they add up to the row."""

    lengths: tuple[int, ...]

    @cached_property
    def longest(self) -> int:
        """The most tokens of a sequence."""
        return max(self.lengths)

    def offsets(self, device: torch.device) -> torch.Tensor:
        """Where each sequence begins, and at last where the row ends, as int32."""
        return torch.tensor([0, *accumulate(self.lengths)], dtype=torch.int32, device=device)


def isolates(architecture: str) -> bool:
    """Models of this architecture (model_type) keep sequences that lie end to end in a row apart."""
    return architecture in ARCHITECTURES


def use_segments(model: Any) -> None:
    """Lets a model attend here, if its architecture can."""
    if isolates(model.config.model_type):
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        base.set_attn_implementation(SEGMENTED)


def attend(
    _module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    segments: Segments | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention as transformers calls it; query, key and value are (rows, heads, tokens, width).

    With segments there is one row, in which no token sees another sequence; without them each row is a sequence, and
    may be padded on the right. A token sees at most sliding_window tokens, itself included. Keys and values may have
    fewer heads. The result is (rows, tokens, heads, width).
    """
    options = {"scale": scaling, "dropout_p": dropout}
    if segments is None:
        return _causal(query, key, value, sliding_window, options).transpose(1, 2), None
    if query.is_cuda and not dropout and _product_format(query) in VARLEN_FORMATS:
        return _varlen(query, key, value, scaling, sliding_window, segments), None
    parts = (tensor.split(segments.lengths, dim=2) for tensor in (query, key, value))
    attended = [_causal(q, k, v, sliding_window, options).transpose(1, 2) for q, k, v in zip(*parts, strict=True)]
    return torch.cat(attended, dim=1), None


def _causal(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sliding_window: int | None, options: dict[str, Any]
) -> torch.Tensor:
    length = query.shape[2]
    mask = None
    if sliding_window is not None and length > sliding_window:
        mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril().triu(1 - sliding_window)
    options = {**options, "attn_mask": mask, "is_causal": mask is None, "enable_gqa": True}
    if query.device.type == "cpu" and length <= SHORT and torch.is_grad_enabled():
        with torch.autocast("cpu", enabled=False):
            out = functional.scaled_dot_product_attention(query.float(), key.float(), value.float(), **options)
        return out.to(value.dtype)
    return functional.scaled_dot_product_attention(query, key, value, **options)


def _varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    sliding_window: int | None,
    segments: Segments,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    offsets, longest, target = segments.offsets(query.device), segments.longest, _product_format(query)
    out = varlen_attn(
        query[0].transpose(0, 1).to(target),
        key[0].transpose(0, 1).to(target),
        value[0].transpose(0, 1).to(target),
        offsets,
        offsets,
        longest,
        longest,
        scale=scaling,
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
        enable_gqa=True,
    )
    assert isinstance(out, torch.Tensor)
    return out[None]


def _product_format(query: torch.Tensor) -> torch.dtype:
    """The format that the products of attention are computed in on a GPU."""
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else query.dtype


AttentionInterface.register(SEGMENTED, attend)
