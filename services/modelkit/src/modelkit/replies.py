"""Where replies stand in the text of a conversation, of chat templates that do not mark them.

A reply is what its turn adds to the text of the turns before it. Templates that show a turn otherwise once others
follow (Qwen3 drops the thoughts of earlier turns) are asked again, with a mark in place of the reply.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from modelkit.datasets import Message
from modelkit.errors import InvalidTemplate, Problem

REPLY = "\x02reply\x03"
FIRST_WORD = re.compile(r"\s*\S*")

Span = tuple[int, int]
Render = Callable[[Sequence[Message], bool], str]


class Marks(Protocol):
    """How a reply is recognised in a text."""

    def marked(self, message: Message) -> Message:
        """A message that is recognised."""

    def around(self, text: str, message: Message) -> tuple[str, str]:
        """What stands before and after such a message in a text. Raises InvalidTemplate when it is not there once."""

    def may_end_in_space(self, message: Message) -> bool:
        """Whether white space at the end of a text may be the message's own."""

    def is_whole(self, shown: str, message: Message) -> bool:
        """Whether a message is shown as it was written, but for white space around it."""

    def search(self, text: str, message: Message, start: int) -> Span:
        """Where a message that is not marked stands in a text, from start on. Raises InvalidTemplate."""


class Written:
    """Replies as they are written."""

    def marked(self, message: Message) -> Message:
        """See Marks."""
        return Message(role=message["role"], content=REPLY)

    def around(self, text: str, message: Message) -> tuple[str, str]:
        """See Marks."""
        lead, found, tail = text.partition(REPLY)
        if not found or REPLY in tail:
            raise _not_shown()
        return lead, tail

    def may_end_in_space(self, message: Message) -> bool:
        """See Marks."""
        return message["content"][-1:].strip() == ""

    def is_whole(self, shown: str, message: Message) -> bool:
        """See Marks."""
        return message["content"].strip() in shown

    def search(self, text: str, message: Message, start: int) -> Span:
        """See Marks."""
        content = message["content"].strip()
        first = text.find(content, start)
        if first < 0 or not content:
            raise _not_shown()
        return first, first + len(content)


@dataclass(frozen=True, slots=True)
class Replies:
    """The replies of a conversation whose text is `text`; render makes texts of parts of it.

    Raises InvalidTemplate when the template does not show a reply.
    """

    render: Render
    messages: Sequence[Message]
    text: str
    marks: Marks

    def spans(self) -> list[Span]:
        """The character ranges of the replies, with what the template puts around them and a model has to write."""
        spans: list[Span] = []
        for index, message in enumerate(self.messages):
            if message["role"] == "assistant":
                spans.append(self._span(index, spans[-1][1] if spans else 0))
        return spans

    def _span(self, index: int, least: int) -> Span:
        message = self.messages[index]
        before = self.render(self.messages[:index], True)
        after = self.text if self._is_last(index) else self.render(self.messages[: index + 1], False)
        goes_on = self.text.startswith(before)
        if goes_on and self.text.startswith(after) and len(before) < len(after):
            return len(before), max(len(before), self._end(index, after))
        if span := self._marked_span(index):
            return min(span[0], len(before)) if goes_on else span[0], span[1]
        return self.marks.search(self.text, message, max(least, len(before)) if goes_on else least)

    def _end(self, index: int, after: str) -> int:
        """Where a text that ends with a reply does so, when white space of the template does not count."""
        if self.marks.may_end_in_space(self.messages[index]):
            _, tail = self._around(index, self.messages[: index + 1])
            if after.endswith(tail):
                return len(after) - len(tail) + len(tail.rstrip())
        return len(after.rstrip())

    def _marked_span(self, index: int) -> Span | None:
        """Where a reply stands between what is written around a mark, with what ends it.

        None where that depends on the reply, and where parts of the last one are missing: those of earlier ones may be
        left out on purpose.
        """
        lead, tail = self._around(index, self.messages)
        first, last = len(lead), len(self.text) - len(tail)
        if first > last or not (self.text.startswith(lead) and self.text.endswith(tail)):
            return None
        if self._is_last(index) and not self.marks.is_whole(self.text[first:last], self.messages[index]):
            return None
        _, closing = self._around(index, self.messages[: index + 1])
        return first, last + _shared(closing, tail)

    def _is_last(self, index: int) -> bool:
        return index == len(self.messages) - 1

    def _around(self, index: int, messages: Sequence[Message]) -> tuple[str, str]:
        marked = self.marks.marked(messages[index])
        return self.marks.around(self.render([*messages[:index], marked, *messages[index + 1 :]], False), marked)


def _shared(closing: str, tail: str) -> int:
    """Characters after a reply that end it, which are the same at the end of a text and within it."""
    ends = (closing.rstrip(), FIRST_WORD.findall(closing)[0])
    return next((len(end) for end in ends if tail.startswith(end)), 0)


def _not_shown() -> InvalidTemplate:
    return InvalidTemplate(Problem("base_model", "the chat template does not show a reply as it was written"))
