"""How much memory a model needs, told before it is loaded, and how much there is."""

import os
from contextlib import suppress
from pathlib import Path

from eval_service.generation.gguf_metadata import Metadata
from modelkit.base_models import ResolvedModel

PROCESS_BYTES = 256 << 20
SHARE_OF_MACHINE = 0.5
GGUF_WIDTH = 2  # llama.cpp keeps keys and values in float16
CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "seq_length", "max_sequence_length")
QUICK_FLAGS = frozenset({"amx_bf16", "avx512_bf16", "bf16"})
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def default_limit() -> int:
    """Half of the memory that this machine or container has, in bytes."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):
        total = min(total, int(CGROUP_LIMIT.read_text()))
    return int(total * SHARE_OF_MACHINE)


def needed_by(model: ResolvedModel, context: int, at_once: int) -> int:
    """Bytes of the weights in the format they are computed in, of keys and values of as many conversations of the
    longest kind as there are answers at once (those that are remembered are among them), and of the process itself."""
    width = _width(model.dtype)
    lengths = [value for name in CONTEXT_NAMES if (value := _number(model.config, name))]
    tokens = min([context, *lengths[:1]]) * at_once
    return model.parameters * width + _token_bytes(model.config, width) * tokens + PROCESS_BYTES


def needed_by_gguf(size: int, metadata: Metadata, context: int) -> int:
    """Bytes that a GGUF file of a size needs, with keys and values of one conversation of the longest kind."""
    tokens = min(context, metadata.number("context_length") or context)
    heads, layers = metadata.number("attention.head_count"), metadata.number("block_count")
    head_width = metadata.number("embedding_length") // heads if heads else 0
    widths = sum(metadata.number(f"attention.{name}_length") or head_width for name in ("key", "value"))
    in_all_layers = metadata.total("attention.head_count_kv", layers) or heads * layers
    return size + in_all_layers * widths * GGUF_WIDTH * tokens + PROCESS_BYTES


def _width(dtype: str) -> int:
    """Bytes of a weight: processors that are not quick with bfloat16 compute in float32, as with float16."""
    return 2 if dtype == "bfloat16" and _is_quick() else 4


def _is_quick() -> bool:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return not QUICK_FLAGS.isdisjoint(line.split())
    return False


def _token_bytes(config: dict[str, object], width: int) -> int:
    """Keys and values of one token in all layers; 0 where the configuration does not tell."""
    heads = _number(config, "num_attention_heads") or _number(config, "n_head")
    layers = _number(config, "num_hidden_layers") or _number(config, "n_layer")
    hidden = _number(config, "hidden_size") or _number(config, "n_embd")
    if not (heads and layers and hidden):
        return 0
    head_width = _number(config, "head_dim") or hidden // heads
    return 2 * layers * (_number(config, "num_key_value_heads") or heads) * head_width * width


def _number(config: dict[str, object], name: str) -> int:
    value = config.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
