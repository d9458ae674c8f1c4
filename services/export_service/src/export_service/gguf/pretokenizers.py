"""Which of llama.cpp's pre-tokenizers splits texts as a byte-level tokenizer does."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from export_service.gguf.errors import not_possible

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}"
_MARKED = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"
_QWEN35 = rf"{_CONTRACTIONS}|{_MARKED}|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_GPT2_SHORT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_OUTER = r"[^\r\n\p{L}\p{N}]?"
_SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = rf"{_OUTER}{_UPPER}*{_LOWER}+|{_OUTER}{_UPPER}+{_LOWER}*|\p{{N}}|{_SLASHED}"
_GPT4O = (
    rf"{_OUTER}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_OUTER}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}|{_SLASHED}"
)
# By what splits a text, and whether a piece that is a token as a whole is taken without looking at the merges.
KNOWN: Mapping[tuple[str, bool], str] = MappingProxyType(
    {
        (_LLAMA3, True): "llama-bpe",
        (_LLAMA3, False): "smaug-bpe",
        (_QWEN2, False): "qwen2",
        (_QWEN35, False): "qwen35",
        (_GPT2, False): "gpt-2",
        (_GPT2_SHORT, False): "gpt-2",
        (_TEKKEN, True): "tekken",
        (_GPT4O, False): "gpt-4o",
    }
)
# The same split and merges, by the architecture whose files usually name it so.
BY_ARCHITECTURE = MappingProxyType(
    {("chatglm", "llama-bpe"): "glm4", ("chatglm", "smaug-bpe"): "chatglm-bpe"}
    | {("glm4", "llama-bpe"): "glm4", ("glm4", "smaug-bpe"): "chatglm-bpe"}
)
DIGITS = "smollm"


def pre_tokenizer(spec: Mapping[str, Any], architecture: str) -> str:
    """llama.cpp's name for what the tokenizer.json of a byte-level BPE says. Raises GgufNotPossible when none fits."""
    steps = spec["pre_tokenizer"]
    steps = steps["pretokenizers"] if steps["type"] == "Sequence" else [steps]
    whole = bool(spec["model"].get("ignore_merges"))
    byte_level = steps[-1]
    if byte_level.get("add_prefix_space"):
        raise not_possible("the tokenizer begins texts with a space of its own, which llama.cpp's do not")
    kinds = [step["type"] for step in steps[:-1]]
    splits_itself = byte_level.get("use_regex", True)
    name = None
    if kinds == ["Digits"] and steps[0].get("individual_digits") and splits_itself and not whole:
        name = DIGITS
    elif kinds == ["Split"] and not splits_itself and steps[0]["behavior"] == "Isolated" and not steps[0]["invert"]:
        name = KNOWN.get((steps[0]["pattern"].get("Regex", ""), whole))
    elif not kinds and splits_itself:
        name = KNOWN.get((_GPT2, whole))
    if name is None:
        raise not_possible(
            "llama.cpp knows no pre-tokenizer that splits texts as this model's does, so it would read other tokens; "
            "use the model in safetensors"
        )
    return BY_ARCHITECTURE.get((architecture, name), name)
