"""A tokenizer as llama.cpp reads it: tokens, their kinds, merges or scores, special tokens, the chat template."""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import orjson
from gguf import TokenType
from transformers import PreTrainedTokenizerBase

from export_service.gguf.errors import not_possible
from export_service.gguf.pretokenizers import pre_tokenizer
from modelkit.ending import template_source

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
SPACE = "\u2581"
MARK = re.compile(r"(\{%[-+]?)\s*(end)?generation\s*([-+]?%\})")
KEPT_NORMALIZERS = frozenset({"NFC", "NFKC", "Precompiled", "Replace", "Prepend", "Sequence"})
STRIPPING = "phi-3"  # llama.cpp takes spaces after special tokens away for models of this name
STRIPPING_NAME = re.compile(r"phi-?3", re.IGNORECASE)
ABSENT = "{{% set {} = '' %}}{{{{ '' }}}}"  # the expression keeps a line break that follows
PREFIX = "tokenizer.ggml."


class Vocabulary:
    """A tokenizer for a model with so many embeddings, of one of llama.cpp's architectures.

    stops are the numbers of tokens that end a reply, beside the tokenizer's own end. Raises GgufNotPossible when
    llama.cpp would read other tokens than the tokenizer.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, size: int, architecture: str, stops: Sequence[int] = ()
    ) -> None:
        self.tokenizer: Any = tokenizer
        self.size = size
        self.stops = list(stops)
        self._spec = orjson.loads(self.tokenizer.backend_tokenizer.to_str())
        self._added = {token["id"]: token for token in self._spec["added_tokens"]}
        self._ids: dict[str, int] = self.tokenizer.get_vocab()
        if (largest := max(self._ids.values())) >= size:
            raise not_possible(f"the tokenizer has a token {largest}, the model {size} embeddings")
        if self._spec["model"]["type"] != "BPE":
            raise not_possible(f"tokenizers of the kind {self._spec['model']['type']} cannot be converted to GGUF")
        self._byte_level = _is_byte_level(self._spec)
        own = _byte_level_entries if self._byte_level else _sentencepiece_entries
        self._entries = own(self._spec, self._ids, architecture)

    def metadata(self) -> dict[str, Any]:
        """Entries by full keys."""
        tokens, kinds = self._tokens()
        entries = {**self._entries, "tokens": tokens, "token_type": kinds, **self._special(), **self._limits()}
        if scores := entries.pop("scores", None):
            entries["scores"] = [scores.get(token, -float(self.size)) for token in tokens]
        found = {f"{PREFIX}{name}": value for name, value in entries.items()}
        if template := chat_template(self.tokenizer):
            found["tokenizer.chat_template"] = template
        return found

    def model_name(self, name: str) -> str:
        """A name for the model under which llama.cpp treats special tokens as the tokenizer does."""
        strips = any(token["rstrip"] for token in self._added.values())
        if strips == bool(STRIPPING_NAME.search(name)):
            return name
        return f"{STRIPPING} {name}" if strips else STRIPPING_NAME.sub("phi 3", name)

    def _tokens(self) -> tuple[list[str], list[int]]:
        tokens = [f"[PAD{number}]" for number in range(self.size)]
        kinds = [int(TokenType.UNUSED)] * self.size
        unknown = self._spec["model"].get("unk_token")
        for token, number in self._ids.items():
            tokens[number] = token
            kinds[number] = int(self._kind(token, number, unknown))
        return tokens, kinds

    def _kind(self, token: str, number: int, unknown: str | None) -> TokenType:
        if not self._byte_level and token == unknown:
            return TokenType.UNKNOWN
        if number in self._added:
            return TokenType.CONTROL if self._added[number]["special"] else TokenType.USER_DEFINED
        if not self._byte_level and BYTE.fullmatch(token):
            return TokenType.BYTE
        return TokenType.NORMAL

    def _special(self) -> dict[str, int]:
        """Numbers of special tokens; llama.cpp has room for two more that end a reply."""
        tokenizer = self.tokenizer
        eos = tokenizer.eos_token_id
        bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else eos
        named = {"bos": bos, "eos": eos, "unknown": tokenizer.unk_token_id, "padding": tokenizer.pad_token_id}
        more = [number for number in self.stops if number != eos]
        named |= dict(zip(("eot", "eom"), more, strict=False))
        return {f"{name}_token_id": int(number) for name, number in named.items() if number is not None}

    def _limits(self) -> dict[str, bool]:
        begins, ends = put_around(self.tokenizer)
        return {"add_bos_token": begins, "add_eos_token": ends}


def put_around(tokenizer: Any) -> tuple[bool, bool]:
    """Whether a tokenizer puts its first token before a text by itself, and its last one after it."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    more = len(whole) > len(plain)
    return more and whole[0] == tokenizer.bos_token_id, more and whole[-1] == tokenizer.eos_token_id


def chat_template(tokenizer: Any) -> str | None:
    """The chat template as others than transformers write the same with it.

    They do not know the marks of what the assistant writes, and give a template a first and a last token even where the
    tokenizer has none.
    """
    source = template_source(tokenizer)
    if source is None:
        return None
    source = MARK.sub(lambda mark: f"{mark[1]} {'endif' if mark[2] else 'if true'} {mark[3]}", source)
    absent = [name for name in ("bos_token", "eos_token") if name in source and getattr(tokenizer, name) is None]
    return "".join(ABSENT.format(name) for name in absent) + source


def _is_byte_level(spec: dict[str, Any]) -> bool:
    steps = spec.get("pre_tokenizer") or {}
    last = steps["pretokenizers"][-1] if steps.get("type") == "Sequence" else steps
    return last.get("type") == "ByteLevel"


def _byte_level_entries(spec: dict[str, Any], _: dict[str, int], architecture: str) -> dict[str, Any]:
    _check_normalizers(spec)
    return {
        "model": "gpt2",
        "pre": pre_tokenizer(spec, architecture),
        "merges": [" ".join(merge) for merge in _merges(spec)],
    }


def _sentencepiece_entries(spec: dict[str, Any], ids: dict[str, int], _: str) -> dict[str, Any]:
    """llama.cpp merges the pair whose result has the best score, and knows no other merges than the tokens."""
    if not spec["model"].get("byte_fallback"):
        raise not_possible("the tokenizer neither works on bytes nor falls back to them, which llama.cpp expects")
    _check_normalizers(spec)
    first = spec.get("pre_tokenizer") or {"type": "Metaspace"}
    if first["type"] != "Metaspace" and first.get("pattern") != {"String": " "}:
        raise not_possible(f"the tokenizer splits texts ({first['type']}) before it merges, which llama.cpp does not")
    normal = ids.keys() - {token["content"] for token in spec["added_tokens"]}
    _check_merges(spec, {token for token in normal if not BYTE.fullmatch(token)})
    scores: dict[str, float] = {}
    for rank, (left, right) in enumerate(_merges(spec)):
        scores.setdefault(left + right, -float(rank))
    return {"model": "llama", "pre": "default", "scores": scores, "add_space_prefix": _begins_with_space(spec)}


def _merges(spec: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for merge in spec["model"]["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        yield left, right


def _check_merges(spec: dict[str, Any], tokens: set[str]) -> None:
    """Raises GgufNotPossible unless any two tokens that make a third one are merged, one result after the other."""
    known = set(merges := list(_merges(spec)))
    results = [left + right for left, right in merges if left + right in tokens]
    for token in tokens:
        splits = ((token[:at], token[at:]) for at in range(1, len(token)))
        for left, right in splits:
            if left in tokens and right in tokens and (left, right) not in known:
                raise _unlike(f"{left!r} and {right!r} are never merged to {token!r}")
    blocks = [results[0], *(after for before, after in pairwise(results) if after != before)] if results else []
    if len(blocks) != len(set(blocks)):
        raise _unlike("merges to one token have different ranks")


def _unlike(what: str) -> Exception:
    return not_possible(f"the tokenizer is unlike those of sentencepiece ({what}); llama.cpp would read other tokens")


def _begins_with_space(spec: dict[str, Any]) -> bool:
    """Whether texts begin with a space of their own."""
    first = spec.get("pre_tokenizer") or {}
    if first.get("type") == "Metaspace":
        return bool(first.get("prepend_scheme", "always") != "never")
    return any(step["type"] == "Prepend" for step in _normalizers(spec))


def _normalizers(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    step = spec.get("normalizer")
    if step:
        yield from step["normalizers"] if step["type"] == "Sequence" else [step]


def _check_normalizers(spec: dict[str, Any]) -> None:
    """Unicode's composed form, which nearly all text has, is taken for granted; llama.cpp does not normalise."""
    for step in _normalizers(spec):
        if step["type"] not in KEPT_NORMALIZERS:
            raise not_possible(f"the tokenizer changes texts first ({step['type']}), which llama.cpp does not")
