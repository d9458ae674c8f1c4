"""How the families' tensors are called in llama.cpp, and in what its architectures differ from transformers'."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

ATTENTION = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
}
GATED = {
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
USUAL = MappingProxyType({**ATTENTION, **GATED, "post_attention_layernorm": "ffn_norm"})
OUTSIDE = MappingProxyType({"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"})
SILU = ("silu", "swish")
GELU = ("gelu_pytorch_tanh", "gelu_new", "gelu")


@dataclass(frozen=True, slots=True)
class Architecture:
    """An architecture of llama.cpp.

    layer and outside are names of modules, within a layer and beside the layers. With pairs llama.cpp rotates
    neighbouring values where transformers rotates halves, so rows of query and key are reordered. With offset_norms
    the stored scales of norms are one less than what is multiplied. windows says after how many layers one attends to
    everything (0: the architecture knows no sliding window). wide_heads says that heads may be wider together than
    the model; output_layer is "own" where one must be there, "tied" where none can be. queries names the tensor that a
    model's own scale of attention can be put into; llama.cpp divides by the square root of a head's width, or, in the
    model with as many layers as widest, of the model's width by head.
    """

    name: str
    layer: Mapping[str, str] = field(default_factory=lambda: USUAL)
    outside: Mapping[str, str] = field(default_factory=lambda: OUTSIDE)
    activations: tuple[str, ...] = SILU
    pairs: bool = False
    offset_norms: bool = False
    layer_norm: bool = False
    windows: int = 0
    wide_heads: bool = True
    output_layer: str = ""
    rope_scalings: frozenset[str] = frozenset({"default", "linear", "yarn", "dynamic"})
    widest: int = 0
    queries: str = ""


_LLAMA = Architecture("llama", pairs=True)
_LLAMA = replace(_LLAMA, rope_scalings=_LLAMA.rope_scalings | {"llama3", "longrope"})
_GEMMA = Architecture("gemma", activations=GELU, offset_norms=True, output_layer="tied")
_SANDWICHED = MappingProxyType(
    {
        **ATTENTION,
        **GATED,
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    }
)
_GLM4 = MappingProxyType(
    {**USUAL, "post_self_attn_layernorm": "post_attention_norm", "post_mlp_layernorm": "post_ffw_norm"}
)
_PHI2 = Architecture(
    "phi2",
    layer=MappingProxyType({**ATTENTION, "self_attn.dense": "attn_output", "mlp.fc1": "ffn_up", "mlp.fc2": "ffn_down"}),
    outside=MappingProxyType(
        {"model.embed_tokens": "token_embd", "model.final_layernorm": "output_norm", "lm_head": "output"}
    ),
    activations=GELU,
    layer_norm=True,
    wide_heads=False,
    output_layer="own",
)
_PHI3 = Architecture("phi3", wide_heads=False)

# By model_type of transformers.
ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "llama": _LLAMA,
        "mistral": _LLAMA,
        "qwen2": Architecture("qwen2", wide_heads=False),
        "qwen3": Architecture("qwen3"),
        "glm": Architecture("chatglm", wide_heads=False),
        "glm4": Architecture("glm4", layer=_GLM4),
        "phi": _PHI2,
        "phi3": replace(_PHI3, rope_scalings=_PHI3.rope_scalings | {"longrope"}),
        "gemma": _GEMMA,
        "gemma2": replace(_GEMMA, name="gemma2", layer=_SANDWICHED, windows=2, widest=46, queries="attn_q"),
        "gemma3_text": replace(
            _GEMMA,
            name="gemma3",
            layer=_SANDWICHED,
            windows=6,
            widest=62,
            queries="attn_q_norm",
            output_layer="",
        ),
    }
)
