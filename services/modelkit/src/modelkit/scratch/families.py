"""What makes a tokenizer and a model one of a family: special tokens, splitting, chat template, configuration.

The special tokens, split patterns and turn markers are those of Llama 3, Qwen 2 and GLM-4, so that everything that
knows the families (tokenizer classes, converters, servers) treats a small model like a real one. The templates carry
generation marks around what the assistant writes, its end-of-turn token included.
"""

from dataclasses import dataclass
from typing import Any

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}{{- message['content'] + '<|eot_id|>' }}{%- endgeneration %}
    {%- else %}
        {{- message['content'] + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
_QWEN2_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}{{- message['content'] + '<|im_end|>' }}{%- endgeneration %}
    {%- else %}
        {{- message['content'] + '<|im_end|>' }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
_GLM4_TEMPLATE = """\
{{- '[gMASK]<sop>' }}
{%- for message in messages %}
    {{- '<|' + message['role'] + '|>\\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}{{- message['content'] }}{%- endgeneration %}
    {%- else %}
        {{- message['content'] }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>\\n' }}
{%- endif %}
"""


@dataclass(frozen=True, slots=True)
class Family:
    """A model family. special_tokens come first in the vocabulary; stop_tokens end a reply."""

    model_type: str
    tokenizer_class: str
    special_tokens: tuple[str, ...]
    bos: str | None
    eos: str
    pad: str
    stop_tokens: tuple[str, ...]
    split_pattern: str
    normalizes: bool
    chat_template: str
    tie_word_embeddings: bool
    rope: dict[str, Any]
    extra: dict[str, Any]


FAMILIES = {
    "llama": Family(
        model_type="llama",
        tokenizer_class="PreTrainedTokenizerFast",
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
        normalizes=False,
        chat_template=_LLAMA_TEMPLATE,
        tie_word_embeddings=False,
        rope={"rope_type": "default", "rope_theta": 500000.0},
        extra={"rms_norm_eps": 1e-5},
    ),
    "qwen2": Family(
        model_type="qwen2",
        tokenizer_class="Qwen2Tokenizer",
        special_tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        bos=None,
        eos="<|im_end|>",
        pad="<|endoftext|>",
        stop_tokens=("<|im_end|>", "<|endoftext|>"),
        split_pattern=rf"{_WORDS}|\p{{N}}|{_REST}",
        normalizes=True,
        chat_template=_QWEN2_TEMPLATE,
        tie_word_embeddings=True,
        rope={"rope_type": "default", "rope_theta": 1000000.0},
        extra={"rms_norm_eps": 1e-6, "use_sliding_window": False},
    ),
    "glm4": Family(
        model_type="glm4",
        tokenizer_class="PreTrainedTokenizerFast",
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
        bos=None,
        eos="<|endoftext|>",
        pad="<|endoftext|>",
        stop_tokens=("<|endoftext|>", "<|user|>", "<|observation|>"),
        split_pattern=rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}",
        normalizes=False,
        chat_template=_GLM4_TEMPLATE,
        tie_word_embeddings=False,
        rope={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        extra={"attention_bias": True, "rms_norm_eps": 1e-5},
    ),
}
