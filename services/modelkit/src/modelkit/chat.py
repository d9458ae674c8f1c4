"""Conversations as token ids with labels: the loss counts only what the assistant writes."""

import threading
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from modelkit.datasets import Message
from modelkit.encoded import IGNORED, Encoded, encode_batch
from modelkit.ending import reply_ends
from modelkit.replies import Span
from modelkit.templates import CONVERSATION_SECONDS, FALLBACK, ChatTemplate

__all__ = ["IGNORED", "ChatEncoder", "Encoded"]


class ChatEncoder:
    """Renders and tokenises conversations.

    A tokenizer without a chat template gets a plain one (fallback is then true), which is also saved with it.
    stop_ids are the tokens that end a reply beside the tokenizer's own end token and what the template ends one with.
    With train_on_prompt every token has a label.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        stop_ids: Sequence[int] = (),
        train_on_prompt: bool = False,
    ) -> None:
        self.fallback = not tokenizer.chat_template
        if self.fallback:
            tokenizer.chat_template = FALLBACK
        source = tokenizer.chat_template
        if isinstance(source, dict):
            source = source.get("default") or next(iter(source.values()))
        tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
        self.template = ChatTemplate(str(source), tokens)
        self.max_length = max_length
        self._train_on_prompt = train_on_prompt
        self._lock = threading.Lock()  # a template notes its spans within itself
        backend: Any = tokenizer
        self._backend = backend.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._end_id: int | None = backend.eos_token_id
        self._given_ids = {*stop_ids, *([] if self._end_id is None else [self._end_id])}
        self._tokenizer = tokenizer

    @property
    def identity(self) -> tuple[object, ...]:
        """What, beside the tokenizer's files, decides what comes out."""
        tokens = sorted(self._given_ids)
        return (
            "chat",
            self.template.source,
            self.template.special_tokens,
            tokens,
            self.max_length,
            self._train_on_prompt,
        )

    @cached_property
    def _stop_ids(self) -> set[int]:
        """Asked for when conversations were rendered in time: a template that never ends is then stopped once."""
        return self._given_ids.union(reply_ends(self._tokenizer))

    def encode(self, rows: Sequence[Sequence[Message]]) -> list[Encoded]:
        """Token ids and labels of each conversation. Raises InvalidTemplate."""
        rendered = []
        with self._lock, self.template.time_limit() as limit:
            for messages in rows:
                rendered.append(self.spans(messages))
                limit.extend(CONVERSATION_SECONDS)
        encodings = encode_batch(self._backend, [text for text, _ in rendered], special_tokens=False)
        return [self._label(encoding, spans) for encoding, (_, spans) in zip(encodings, rendered, strict=True)]

    def spans(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """The rendered text and the character ranges of the replies. Raises InvalidTemplate."""
        if plan := self.template.plan(messages):
            return plan.fill(messages)
        return self.template.reply_spans(messages)

    def _label(self, encoding: Any, spans: list[Span]) -> Encoded:
        ids = np.array(encoding.ids, dtype=np.int32)
        labels = np.full_like(ids, IGNORED)
        last = 0
        for start, end in spans:
            first, last = _tokens(encoding, start, end)
            if last < len(ids) and ids[last - 1] not in self._stop_ids and int(ids[last]) in self._stop_ids:
                last += 1  # the template leaves the token that ends the reply to the next turn
            labels[first:last] = ids[first:last]
        if last == len(ids) and last and int(ids[-1]) not in self._stop_ids and self._end_id is not None:
            ids = np.append(ids, np.int32(self._end_id))
            labels = np.append(labels, np.int32(self._end_id))
        if self._train_on_prompt:
            labels = ids.copy()
        truncated = len(ids) > self.max_length
        return Encoded(ids[: self.max_length], labels[: self.max_length], truncated)


def _tokens(encoding: Any, start: int, end: int) -> tuple[int, int]:
    """The tokens [first, last) that hold the characters [start, end)."""
    first, last = encoding.char_to_token(start), encoding.char_to_token(end - 1)
    if first is None or last is None:  # a character that the tokenizer drops
        starts = [begin for begin, _ in encoding.offsets]
        first = int(np.searchsorted(starts, start))
        return first, int(np.searchsorted(starts, end))
    while last + 1 < len(encoding.ids) and (following := encoding.token_to_chars(last + 1)) and following[0] < end:
        last += 1  # a character may need several tokens
    return first, last + 1
