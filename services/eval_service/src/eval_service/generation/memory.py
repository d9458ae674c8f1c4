"""How much memory a model needs, told before it is loaded, and how much there is."""

import os
from contextlib import suppress
from pathlib import Path

from modelkit.base_models import ResolvedModel

PROCESS_BYTES = 256 << 20
SHARE_OF_MACHINE = 0.5
QUICK_FLAGS = frozenset({"amx_bf16", "avx512_bf16", "bf16"})
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def default_limit() -> int:
    """Half of the memory that this machine or container has, in bytes."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):
        total = min(total, int(CGROUP_LIMIT.read_text()))
    return int(total * SHARE_OF_MACHINE)


def needed_by(model: ResolvedModel, context: int) -> int:
    """Bytes of the weights in the format they are computed in, of keys and values of one conversation of the longest
    kind, and of the process itself."""
    width = _width(model.dtype)
    return model.parameters * width + _token_bytes(model.config, width) * context + PROCESS_BYTES


def needed_by_gguf(size: int) -> int:
    """Bytes that a GGUF file of a size needs."""
    return size + PROCESS_BYTES


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

    def number(name: str, default: int = 0) -> int:
        value = config.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) else default

    heads = number("num_attention_heads") or number("n_head")
    layers = number("num_hidden_layers") or number("n_layer")
    hidden = number("hidden_size") or number("n_embd")
    if not (heads and layers and hidden):
        return 0
    return 2 * layers * number("num_key_value_heads", heads) * number("head_dim", hidden // heads) * width
