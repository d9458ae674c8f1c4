"""Shapes of models for estimates: from a configuration alone, whatever the size, without a weight in memory."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from trainer_service.estimates.shape import Shape, shape_of

AUTO: Any = AutoModelForCausalLM

LLAMA = {"vocab_size": 32000, "max_position_embeddings": 4096}
LLAMA_7B = LLAMA | {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}
LLAMA_13B = LLAMA | {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
}
LLAMA_70B = LLAMA | {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
}
QWEN2_HALF_B = {
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
QWEN2_3B = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
QWEN2_14B = {
    "vocab_size": 152064,
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
}


@dataclass(frozen=True)
class Blueprint:
    """A family and its configuration."""

    family: str
    config: dict[str, Any]

    def model(self, **more: Any) -> Any:
        """The model itself with random weights."""
        return AUTO.from_config(AutoConfig.for_model(self.family, **self.config), **more)

    def shape(self, dtype: str = "bfloat16") -> Shape:
        """The shape that the model's files would have."""
        with torch.device("meta"):
            model = self.model()
        tensors = model.state_dict()
        if model.config.tie_word_embeddings:
            tensors.pop("lm_head.weight")
        return shape_of(self.config, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, dtype)
