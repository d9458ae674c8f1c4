"""What makes a forward pass of one token for each of many answers cheap on a CPU: nothing that is known is copied.

PyTorch's attention on a CPU shares keys and values between heads also under a mask, which transformers asks of it on
other devices alone; and its caches move all keys and values to add one.
"""

from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import sdpa_mask

from modelkit.attention import isolates

SHARED_HEADS = "shared_heads"
ROOM = 64


def use_cached_attention(model: Any) -> None:
    """Lets a model attend to what it has cached in the quickest way that is exact, if its architecture can."""
    if isolates(model.config.model_type):
        on_cpu = next(model.parameters()).device.type == "cpu"
        model.set_attn_implementation(SHARED_HEADS if on_cpu else "sdpa")


def empty_cache(model: Any) -> Any:
    """A cache of a model's keys and values; those of layers without a window have room to grow."""
    cache: Any = DynamicCache(config=model.config)
    roomy: Any = RoomyLayer  # transformers leaves its base untyped
    cache.layers = [roomy() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class RoomyLayer(DynamicLayer):
    """Keys and values (rows, heads, tokens, width) at the beginning of larger tensors, into which tokens are added."""

    _larger: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds tokens; all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        known = self.get_seq_length()
        length = known + key_states.shape[2]
        if self._larger is None or self._larger[0].shape[2] < length:
            self._larger = (self._enlarged(self.keys, key_states), self._enlarged(self.values, value_states))
        keys, values = self._larger
        keys[:, :, known:length] = key_states
        values[:, :, known:length] = value_states
        self.keys, self.values = keys[:, :, :length], values[:, :, :length]
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Only keeps these rows."""
        super().batch_select_indices(indices)
        self._larger = None

    def _enlarged(self, old: torch.Tensor | None, new: torch.Tensor) -> torch.Tensor:
        rows, heads, added, width = new.shape
        known = self.get_seq_length()
        larger = new.new_empty(rows, heads, known + added + ROOM, width)
        if old is not None and known:
            larger[:, :, :known] = old
        return larger


def attend(
    _module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it; query, key and value are (rows, heads, tokens, width), mask (rows, 1, query
    tokens, key tokens). The result is (rows, tokens, heads, width)."""
    causal = mask is None and query.shape[2] > 1
    attended = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, scale=scaling, dropout_p=dropout, enable_gqa=True
    )
    return attended.transpose(1, 2).contiguous(), None


AttentionInterface.register(SHARED_HEADS, attend)
AttentionMaskInterface.register(SHARED_HEADS, sdpa_mask)
