"""The configuration of a ChatGLM or GLM-4 checkpoint, and the one of "glm" that computes the same."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from modelkit.chatglm.pieces import count_pieces, read_lines

MODEL_TYPE = "chatglm"
ARCHITECTURE = "GlmForCausalLM"
ROPE_BASE = 10000.0
ROTATED_SHARE = 0.5
END, PADDING = 2, 0
# The special tokens, which follow the vocabulary in this order.
SPECIAL_TOKENS = (
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "<sop>",
    "<eop>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
)
GLM4_SPECIAL_TOKENS = (
    "<|endoftext|>",
    *SPECIAL_TOKENS,
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
)
STOPS = ("<|user|>", "<|observation|>")
# What the equivalent architecture computes; anything else in a checkpoint has no equivalent.
EXPECTED = {
    "multi_query_attention": True,
    "rmsnorm": True,
    "post_layer_norm": True,
    "original_rope": True,
    "add_bias_linear": False,
    "apply_residual_connection_post_layernorm": False,
    "fp32_residual_connection": False,
    "pre_seq_len": None,
    "quantization_bit": 0,
    "vision_config": None,
}
SIZES = (
    "hidden_size",
    "num_layers",
    "num_attention_heads",
    "multi_query_group_num",
    "ffn_hidden_size",
    "kv_channels",
    "padded_vocab_size",
    "seq_length",
)


def problems(config: dict[str, Any], directory: Path) -> Iterator[str]:
    """Why a checkpoint with this config.json cannot be converted."""
    if absent := [name for name in SIZES if not isinstance(config.get(name), int) or config[name] < 1]:
        lacks = f"config.json has no {', '.join(absent)}, as ChatGLM2 and 3 have"
        yield f"{lacks}; other ChatGLM models ask for code of their own, which is never run"
    for name, value in EXPECTED.items():
        if config.get(name, value) not in (value, None):
            yield f"config.json: {name} = {config[name]!r} has no equivalent without the model's own code"
    if not (directory / "tokenizer.model").is_file():
        yield f"{directory} has no tokenizer.model, from which the tokenizer is converted"
        return
    try:
        _special_tokens(config, directory)
    except (OSError, ValueError) as error:
        yield f"tokenizer.model cannot be read: {error}; copy the file again"


def is_original(directory: Path) -> bool:
    """Whether a directory holds a checkpoint in the original layout."""
    try:
        config = orjson.loads((directory / "config.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") == MODEL_TYPE


def is_sentencepiece(path: Path) -> bool:
    """Whether a tokenizer.model is a sentencepiece model; that of GLM-4 is lines of text."""
    with path.open("rb") as file:
        return file.read(1) == b"\x0a"  # the first field of the message, its pieces


def generation(config: dict[str, Any], directory: Path) -> int:
    """2 for ChatGLM2, 3 for ChatGLM3, 4 for GLM-4.

    They have one architecture, and differ in the tokenizer and in how a conversation is written.
    """
    if not is_sentencepiece(directory / "tokenizer.model"):
        return 4
    names = f"{config.get('_name_or_path', '')} {directory}".lower().replace("-", "").replace("_", "")
    return 2 if "chatglm2" in names else 3


def equivalent_config(config: dict[str, Any], directory: Path) -> dict[str, Any]:
    """config.json of the converted model."""
    ratio = float(config.get("rope_ratio") or 1)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": ROPE_BASE}
    if ratio != 1 and generation(config, directory) == 2:  # ChatGLM2 stretches positions, its successors the base
        rope = {"rope_type": "linear", "rope_theta": ROPE_BASE, "factor": ratio}
    elif ratio != 1:
        rope["rope_theta"] = ROPE_BASE * ratio
    special = _special_tokens(config, directory)
    return {
        "model_type": "glm",
        "architectures": [ARCHITECTURE],
        "vocab_size": config["padded_vocab_size"],
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["ffn_hidden_size"],
        "num_hidden_layers": config["num_layers"],
        "num_attention_heads": config["num_attention_heads"],
        "num_key_value_heads": config["multi_query_group_num"],
        "head_dim": config["kv_channels"],
        "attention_bias": bool(config.get("add_qkv_bias", False)),
        "attention_dropout": config.get("attention_dropout", 0.0),
        "hidden_act": "silu",
        "rms_norm_eps": config.get("layernorm_epsilon", 1e-5),
        "max_position_embeddings": config["seq_length"],
        "rope_parameters": {**rope, "partial_rotary_factor": ROTATED_SHARE},
        "tie_word_embeddings": False,
        "pad_token_id": special.get("<|endoftext|>", PADDING),
        "bos_token_id": None,
        "eos_token_id": [special.get("<|endoftext|>", END), *(special[token] for token in STOPS)],
        "dtype": config.get("torch_dtype") or config.get("dtype") or "float16",
    }


def converted_layers() -> frozenset[str]:
    """Names of the matrices of a converted model."""
    return frozenset({"embed_tokens", "q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj", "lm_head"})


def _special_tokens(config: dict[str, Any], directory: Path) -> dict[str, int]:
    """The numbers of the special tokens."""
    source = directory / "tokenizer.model"
    names: tuple[str, ...]
    if generation(config, directory) == 4:
        names, first = GLM4_SPECIAL_TOKENS, len(read_lines(source))
    else:
        names, first = SPECIAL_TOKENS, count_pieces(source)
    return {name: first + place for place, name in enumerate(names)}
