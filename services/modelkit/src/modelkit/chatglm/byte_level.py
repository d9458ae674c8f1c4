"""The tokenizer of GLM-4 in its original form, a list of byte strings by rank, as a byte-level BPE."""

import base64
import binascii
from pathlib import Path
from typing import Any

from modelkit.chatglm.config import GLM4_SPECIAL_TOKENS
from modelkit.chatglm.pieces import read_lines

# What is split before the merges; the same as in the model's native form.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GLM4_TEMPLATE = """\
{{- '[gMASK]<sop>' }}
{%- for message in messages %}
    {{- '<|' + message['role'] + '|>' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}{{- '\\n' + message['content'] }}{%- endgeneration %}
    {%- else %}
        {{- '\\n' + message['content'] }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}
"""


def read_ranks(source: Path) -> list[bytes]:
    """The byte strings of a tokenizer.model by rank. Raises ValueError naming the line that is wrong, or OSError."""
    tokens: list[bytes] = []
    for number, line in enumerate(read_lines(source), start=1):
        try:
            text, rank = line.split()
            token = base64.b64decode(text, validate=True)
        except (ValueError, binascii.Error):
            raise ValueError(f"{source.name}, line {number} is not a token and its rank") from None
        if rank != str(len(tokens)).encode():
            raise ValueError(f"{source.name}, line {number} has rank {rank.decode('ascii', 'replace')[:20]}")
        tokens.append(token)
    return tokens


def byte_level_backend(source: Path) -> Any:
    """A tokenizer that splits, merges and numbers as the ranks say. Raises ValueError, OSError."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    tokens = read_ranks(source)
    written = bytes_as_characters()
    names = ["".join(written[byte] for byte in token) for token in tokens]
    backend = Tokenizer(
        models.BPE(vocab={name: rank for rank, name in enumerate(names)}, merges=_merges(names), ignore_merges=True)
    )
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in GLM4_SPECIAL_TOKENS])
    return backend


def bytes_as_characters() -> dict[int, str]:
    """How a byte-level BPE writes each byte: itself where it is a visible character, else one beyond the first 256."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(visible)]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + place) for place, byte in enumerate(others)}


def _merges(names: list[str]) -> list[tuple[str, str]]:
    """Two neighbours are merged when they make a token; the one of the lowest rank goes first."""
    ranks = {name: rank for rank, name in enumerate(names)}
    merges: list[tuple[str, str]] = []
    for name in names:
        splits = [(name[:at], name[at:]) for at in range(1, len(name))]
        known = [split for split in splits if split[0] in ranks and split[1] in ranks]
        merges += sorted(known, key=lambda split: (ranks[split[0]], ranks[split[1]]))
    return merges
