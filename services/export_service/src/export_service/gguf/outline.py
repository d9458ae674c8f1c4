"""What llama.cpp must know of a model beside its tensors and its tokenizer."""

import math
from collections.abc import Iterator
from typing import Any

from export_service.gguf import rope
from export_service.gguf.architectures import ARCHITECTURES, Architecture

LOCAL_THETA = "rope.freq_base_swa"
SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "max_position_embeddings")


class Outline:
    """A model's configuration as llama.cpp's architecture takes it. config is a config.json with its defaults filled.

    scaling holds what stretches its positions. query_scale is what queries are multiplied by, where llama.cpp divides
    attention by another number than the model does.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.architecture: Architecture = ARCHITECTURES[config["model_type"]]
        self.heads = int(config["num_attention_heads"])
        self.key_heads = int(config.get("num_key_value_heads") or self.heads)
        self.layers = int(config["num_hidden_layers"])
        self.width = int(config["hidden_size"])
        self.head_width = int(config.get("head_dim") or self.width // self.heads)
        self.rope = rope.parameters(config)
        self.rotated = int(self.head_width * (self.rope.get("partial_rotary_factor") or 1.0))

    @property
    def scaling(self) -> rope.Scaling:
        """Metadata and tensors of stretched positions."""
        return rope.scaling(self.rope, self.config, self.rotated)

    @property
    def query_scale(self) -> float:
        """1 unless a Gemma model divides attention by something else than llama.cpp would."""
        wanted = self.config.get("query_pre_attn_scalar")
        if not wanted or not self.architecture.widest:
            return 1.0
        widest = self.layers == self.architecture.widest
        return math.sqrt((self.width // self.heads if widest else self.head_width) / wanted)

    @property
    def context_length(self) -> int:
        """Tokens that the model reads. Where llama.cpp knows no sliding window, up to that window both agree."""
        longest, window = int(self.config["max_position_embeddings"]), int(self.config.get("sliding_window") or 0)
        slides = window and self.config.get("use_sliding_window", True) and not self.architecture.windows
        return min(longest, window) if slides else longest

    def metadata(self) -> dict[str, Any]:
        """Entries without the architecture's prefix."""
        config, norm = self.config, "layer_norm" if self.architecture.layer_norm else "layer_norm_rms"
        entries: dict[str, Any] = {
            "context_length": self.context_length,
            "embedding_length": self.width,
            "block_count": self.layers,
            "feed_forward_length": int(config["intermediate_size"]),
            "attention.head_count": self.heads,
            "attention.head_count_kv": self.key_heads,
            "attention.key_length": self.head_width,
            "attention.value_length": self.head_width,
            f"attention.{norm}_epsilon": float(config["layer_norm_eps" if "rms" not in norm else "rms_norm_eps"]),
            "rope.dimension_count": self.rotated,
            "rope.freq_base": float(self.rope.get("rope_theta", 10000.0)),
            **self.scaling.metadata,
        }
        if self.architecture.windows:
            entries["attention.sliding_window"] = int(config["sliding_window"])
            entries[LOCAL_THETA] = float(rope.parameters(config, "sliding_attention")["rope_theta"])
        caps = (("attn_logit_softcapping", "attn_logit_softcapping"), ("final_logit_softcapping",) * 2)
        entries |= {ours: float(config[theirs]) for theirs, ours in caps if config.get(theirs)}
        return entries


def outline_problems(config: dict[str, Any]) -> Iterator[str]:
    """Why a model with this configuration cannot be run by llama.cpp."""
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        yield f"models of the family {kind!r} cannot be converted to GGUF; possible are {', '.join(ARCHITECTURES)}"
        return
    if missing := [name for name in SIZES if not config.get(name)]:
        yield f"config.json has no {', '.join(missing)}"
        return
    outline = Outline(config)
    architecture = outline.architecture
    activation = config.get("hidden_activation") or config.get("hidden_act")
    if activation and activation not in architecture.activations:
        yield f"its activation {activation!r} is not the one that llama.cpp's architecture {architecture.name} has"
    if not architecture.wide_heads and outline.heads * outline.head_width != outline.width:
        yield (
            f"its {outline.heads} heads of width {outline.head_width} are not as wide as the model ({outline.width}), "
            f"which llama.cpp's architecture {architecture.name} expects"
        )
    if config.get("qk_layernorm") or config.get("use_bidirectional_attention"):
        yield "its attention (qk_layernorm, use_bidirectional_attention) is not known to llama.cpp"
    if architecture.windows and not _alternates(config.get("layer_types"), architecture.windows):
        yield f"its sliding layers do not follow the pattern of llama.cpp's architecture {architecture.name}"
    yield from rope.problems(outline.rope, architecture.rope_scalings, architecture.name)


def _alternates(layers: list[str] | None, every: int) -> bool:
    """Whether each so-manieth layer attends to everything and the others to a window; the default where none says."""
    if layers is None:
        return True
    return all((kind == "full_attention") == ((at + 1) % every == 0) for at, kind in enumerate(layers))
