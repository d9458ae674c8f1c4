"""What makes a tokenizer and a model one of a family: special tokens, splitting, chat template, configuration.

Special tokens, split patterns and turn markers are those of the families themselves, so that everything that knows
them (tokenizer classes, converters, servers) treats a small model like a real one.
"""

from dataclasses import dataclass, replace
from typing import Any

from modelkit.scratch import chat_templates as templates

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_FAST = "PreTrainedTokenizerFast"


@dataclass(frozen=True, slots=True)
class Family:
    """A model family. special_tokens come first in the vocabulary; stop_tokens end a reply.

    With a split_pattern the tokenizer is a byte-level BPE; without one it is a BPE of characters that falls back to
    bytes, as sentencepiece makes it, and prefix_space says whether a text begins with a space of its own.
    """

    model_type: str
    special_tokens: tuple[str, ...]
    eos: str
    pad: str
    stop_tokens: tuple[str, ...]
    chat_template: str
    rope: dict[str, Any]
    extra: dict[str, Any]
    bos: str | None = None
    unk: str | None = None
    tokenizer_class: str = _FAST
    split_pattern: str = ""
    prefix_space: bool = False
    normalizes: bool = False
    tie_word_embeddings: bool = False


def _rope(theta: float, **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta, **more}


_LLAMA3 = Family(
    model_type="llama",
    special_tokens=(
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|finetune_right_pad_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eom_id|>",
        "<|eot_id|>",
        "<|python_tag|>",
    ),
    bos="<|begin_of_text|>",
    eos="<|eot_id|>",
    pad="<|finetune_right_pad_id|>",
    stop_tokens=("<|end_of_text|>", "<|eot_id|>"),
    split_pattern=rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}",
    chat_template=templates.LLAMA3,
    rope=_rope(500000.0),
    extra={"rms_norm_eps": 1e-5},
)
_LLAMA2 = Family(
    model_type="llama",
    special_tokens=("<unk>", "<s>", "</s>"),
    bos="<s>",
    eos="</s>",
    unk="<unk>",
    pad="<unk>",
    stop_tokens=("</s>",),
    prefix_space=True,
    chat_template=templates.LLAMA2,
    rope=_rope(10000.0),
    extra={"rms_norm_eps": 1e-5},
)
_MISTRAL = replace(
    _LLAMA2,
    model_type="mistral",
    chat_template=templates.MISTRAL,
    rope=_rope(1000000.0),
    extra={"rms_norm_eps": 1e-5, "sliding_window": None},
)
_QWEN2 = Family(
    model_type="qwen2",
    tokenizer_class="Qwen2Tokenizer",
    special_tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    eos="<|im_end|>",
    pad="<|endoftext|>",
    stop_tokens=("<|im_end|>", "<|endoftext|>"),
    split_pattern=rf"{_WORDS}|\p{{N}}|{_REST}",
    normalizes=True,
    chat_template=templates.CHATML,
    tie_word_embeddings=True,
    rope=_rope(1000000.0),
    extra={"rms_norm_eps": 1e-6, "use_sliding_window": False},
)
_QWEN2_5 = replace(
    _QWEN2,
    special_tokens=(
        *_QWEN2.special_tokens,
        *("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>"),
        *("<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
        *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
        *("<|repo_name|>", "<|file_sep|>"),
    ),
)
_QWEN3 = replace(
    _QWEN2_5,
    model_type="qwen3",
    special_tokens=(*_QWEN2_5.special_tokens, "<tool_response>", "</tool_response>", "<think>", "</think>"),
)
_GLM4 = Family(
    model_type="glm4",
    special_tokens=(
        "<|endoftext|>",
        "[MASK]",
        "[gMASK]",
        "[sMASK]",
        "<sop>",
        "<eop>",
        "<|system|>",
        "<|user|>",
        "<|assistant|>",
        "<|observation|>",
    ),
    eos="<|endoftext|>",
    pad="<|endoftext|>",
    stop_tokens=("<|endoftext|>", "<|user|>", "<|observation|>"),
    split_pattern=rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}",
    chat_template=templates.GLM4,
    rope=_rope(10000.0, partial_rotary_factor=0.5),
    extra={"attention_bias": True, "rms_norm_eps": 1e-5},
)
_PHI = Family(
    model_type="phi",
    special_tokens=("<|endoftext|>",),
    bos="<|endoftext|>",
    eos="<|endoftext|>",
    unk="<|endoftext|>",
    pad="<|endoftext|>",
    stop_tokens=("<|endoftext|>",),
    split_pattern=_GPT2,
    chat_template=templates.PHI,
    rope=_rope(10000.0, partial_rotary_factor=0.5),
    extra={"layer_norm_eps": 1e-5, "hidden_act": "gelu_new"},
)
_PHI3 = Family(
    model_type="phi3",
    special_tokens=(
        *("<unk>", "<s>", "</s>", "<|endoftext|>", "<|assistant|>", "<|placeholder1|>", "<|placeholder2|>"),
        *("<|placeholder3|>", "<|placeholder4|>", "<|system|>", "<|end|>", "<|placeholder5|>", "<|placeholder6|>"),
        "<|user|>",
    ),
    bos="<s>",
    eos="<|endoftext|>",
    unk="<unk>",
    pad="<|endoftext|>",
    stop_tokens=("<|endoftext|>", "<|end|>"),
    prefix_space=True,
    chat_template=templates.PHI3,
    rope=_rope(10000.0),
    extra={"rms_norm_eps": 1e-5},
)
_GEMMA = Family(
    model_type="gemma",
    special_tokens=("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"),
    bos="<bos>",
    eos="<eos>",
    unk="<unk>",
    pad="<pad>",
    stop_tokens=("<eos>", "<end_of_turn>"),
    chat_template=templates.GEMMA,
    tie_word_embeddings=True,
    rope=_rope(10000.0),
    extra={"rms_norm_eps": 1e-6},
)
_GEMMA2 = replace(
    _GEMMA,
    model_type="gemma2",
    extra={"rms_norm_eps": 1e-6, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
)
_GEMMA3 = replace(
    _GEMMA,
    model_type="gemma3_text",
    rope={"full_attention": _rope(1000000.0), "sliding_attention": _rope(10000.0)},
)
FAMILIES = {
    "llama": _LLAMA3,
    "llama2": _LLAMA2,
    "mistral": _MISTRAL,
    "qwen1.5": replace(_QWEN2, tie_word_embeddings=False),
    "qwen2": _QWEN2,
    "qwen2.5": _QWEN2_5,
    "qwen3": _QWEN3,
    "glm": replace(_GLM4, model_type="glm"),
    "glm4": _GLM4,
    "phi": _PHI,
    "phi3": _PHI3,
    "gemma": _GEMMA,
    "gemma2": _GEMMA2,
    "gemma3": _GEMMA3,
}
