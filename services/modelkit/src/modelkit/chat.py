"""Conversations as token ids with labels: the loss counts only what the assistant writes."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from modelkit.datasets import Message
from modelkit.errors import InvalidTemplate, Problem
from modelkit.templates import FALLBACK, ChatTemplate, Span

IGNORED = -100
Ids = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A conversation: token ids and labels of equal length, IGNORED where no loss counts; truncated: it was cut.

    label is the class of a text to classify, -1 where there is none.
    """

    input_ids: Ids
    labels: Ids
    truncated: bool
    label: int = -1

    @property
    def masked(self) -> bool:
        """Nothing of the replies is left, and there is no class to learn either."""
        return self.label < 0 and not bool((self.labels != IGNORED).any())


class ChatEncoder:
    """Renders and tokenises conversations.

    A tokenizer without a chat template gets a plain one (fallback is then true), which is also saved with it.
    stop_ids are the tokens that end a reply beside the tokenizer's own end token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, max_length: int, stop_ids: Sequence[int] = ()) -> None:
        self.fallback = not tokenizer.chat_template
        if self.fallback:
            tokenizer.chat_template = FALLBACK
        source = tokenizer.chat_template
        if isinstance(source, dict):
            source = source.get("default") or next(iter(source.values()))
        tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
        self.template = ChatTemplate(str(source), tokens)
        self.max_length = max_length
        self._lock = threading.Lock()  # a template notes its spans within itself
        backend: Any = tokenizer
        self._backend = backend.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._end_id: int | None = backend.eos_token_id
        self._stop_ids = {*stop_ids, *([] if self._end_id is None else [self._end_id])}

    def encode(self, conversations: Sequence[Sequence[Message]]) -> list[Encoded]:
        """Token ids and labels of each conversation. Raises InvalidTemplate."""
        with self._lock, self.template.time_limit():
            rendered = [self.spans(messages) for messages in conversations]
        encodings = self._backend.encode_batch([text for text, _ in rendered], add_special_tokens=False)
        return [self._label(encoding, spans) for encoding, (_, spans) in zip(encodings, rendered, strict=True)]

    def spans(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """The rendered text and the character ranges of the replies. Raises InvalidTemplate."""
        text, spans = self.template.render_marked(messages) if self.template.marked else ("", [])
        spans = [span for span in spans if span[0] < span[1]]
        return (text, spans) if spans else self._spans_by_prefix(messages)

    def _spans_by_prefix(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """What each reply adds to the text of the turns before it.

        A template that shows a turn otherwise once others follow makes prefixes that do not match; the reply is then
        looked for as it stands.
        """
        text = self.template.render(messages)
        spans: list[Span] = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.template.render(messages[:index], add_generation_prompt=True)
            after = text if index == len(messages) - 1 else self.template.render(messages[: index + 1])
            if text.startswith(before) and text.startswith(after) and len(before) < len(after):
                start, end = len(before), len(after.rstrip())
            else:
                content = message["content"].strip()
                start = text.find(content, spans[-1][1] if spans else 0)
                end = start + len(content)
                if start < 0 or not content:
                    message_ = "the chat template does not show a reply as it was written"
                    raise InvalidTemplate(Problem("base_model", message_))
            spans.append((start, end))
        return text, spans

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
        truncated = len(ids) > self.max_length
        return Encoded(ids[: self.max_length], labels[: self.max_length], truncated)


def _tokens(encoding: Any, start: int, end: int) -> tuple[int, int]:
    """The tokens [first, last) that hold the characters [start, end)."""
    first, last = encoding.char_to_token(start), encoding.char_to_token(end - 1)
    if first is None or last is None:  # a character that the tokenizer drops
        starts = [begin for begin, _ in encoding.offsets]
        first = int(np.searchsorted(starts, start))
        last = int(np.searchsorted(starts, end)) - 1
    return first, last + 1
