"""Where replies stand in the text of a conversation, of chat templates that do not mark them.

A reply is what its turn adds to the text of the turns before it. Templates that show a turn otherwise once others
follow (Qwen3 drops the thoughts of earlier turns) are asked again, with marks in place of the replies.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from modelkit.datasets import Message
from modelkit.errors import InvalidTemplate, Problem

REPLY = "markedreply7c41"  # letters and digits stay as they are where a template escapes what is said
FIRST_WORD = re.compile(r"\s*\S*")

Span = tuple[int, int]
Render = Callable[[Sequence[Message], bool], str]


class Marks(Protocol):
    """How replies are recognised in a text."""

    def marked(self, message: Message) -> Message:
        """A message that is recognised."""

    def split(self, text: str, messages: Sequence[Message]) -> list[str]:
        """What stands before, between and after such messages in a text; nothing when they are not there in order."""

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

    def split(self, text: str, messages: Sequence[Message]) -> list[str]:
        """See Marks."""
        pieces = text.split(REPLY)
        return pieces if len(pieces) == len(messages) + 1 else []

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
            raise InvalidTemplate(Problem("base_model", "the chat template does not show a reply as it was written"))
        return first, first + len(content)


@dataclass(frozen=True, slots=True)
class Frame:
    """What a template writes around replies: asking is what asks for one and opens it, opening what opens it, closing
    what a text ends with after it.
    """

    asking: str = ""
    opening: str = ""
    closing: str = ""

    def end(self, text: str, last: int) -> int:
        """Where a reply whose words end at last ends: with what closes it at the end of a text and within it."""
        ends = (self.closing.rstrip(), FIRST_WORD.findall(self.closing)[0])
        return next((last + len(end) for end in ends if text.startswith(end, last)), last)


class Replies:
    """The replies of a conversation whose text is `text`; render makes texts of parts of it.

    header is what the template asks for a reply with at the end of every text, empty where it asks when it is told to.
    Raises InvalidTemplate when the template does not show a reply.
    """

    def __init__(self, render: Render, messages: Sequence[Message], text: str, marks: Marks, header: str = "") -> None:
        self._render = render
        self._messages = messages
        self._text = text
        self._marks = marks
        self._header = header

    def spans(self) -> list[Span]:
        """The character ranges of the replies, with what the template puts around them and a model has to write."""
        replies = [index for index, message in enumerate(self._messages) if message["role"] == "assistant"]
        turns = self._first_turns(replies)
        others = [index for index in replies if index not in turns]
        places = self._places(others)
        if others and not places:
            turns |= self._turns(others[1:])
            for index in others:
                places |= {} if index in turns else self._places([index])
        frame = self._frame(*min(places.items())) if places else Frame()
        own = self._places([index for index in turns if self._marks.may_end_in_space(self._messages[index])])
        spans: list[Span] = []
        for index in replies:
            if index in turns:
                spans.append(self._turn_span(index, turns[index], own))
            elif index in places:
                spans.append(self._placed_span(index, places[index], frame))
            else:
                spans.append(self._found_span(index, spans[-1][1] if spans else 0))
        return spans

    def _first_turns(self, replies: Sequence[int]) -> dict[int, Span]:
        """What the first replies add to the text, as far as there are such, and the last: where one turn is shown
        otherwise once others follow, those after it mostly are too.
        """
        turns: dict[int, Span] = {}
        for index in replies:
            if not (found := self._turns([index])):
                return turns | self._turns([last for last in replies[-1:] if last != index and self._is_last(last)])
            turns |= found
        return turns

    def _turns(self, indices: Iterable[int]) -> dict[int, Span]:
        """What replies add to the text of the turns before them, of those that do."""
        turns: dict[int, Span] = {}
        for index in indices:
            before = self._render(self._messages[:index], True)
            after = self._text if self._is_last(index) else self._render(self._messages[: index + 1], False)
            if self._text.startswith(before) and self._text.startswith(after) and len(before) < len(after):
                turns[index] = len(before), len(after)
        return turns

    def _places(self, indices: Sequence[int]) -> dict[int, Span]:
        """Where replies stand between what is written around marks in place of them.

        None where that depends on the replies, and where parts of the last one are missing: those of earlier ones may
        be left out on purpose.
        """
        found = _aligned(self._text, self._around(indices, self._messages)) if indices else []
        places = dict(zip(indices, found, strict=False))
        for index, (first, last) in places.items():
            if self._is_last(index) and not self._marks.is_whole(self._text[first:last], self._messages[index]):
                return {}
        return places

    def _around(self, indices: Sequence[int], messages: Sequence[Message]) -> list[str]:
        marked = {index: self._marks.marked(messages[index]) for index in indices}
        turns = [marked.get(index, message) for index, message in enumerate(messages)]
        return self._marks.split(self._render(turns, False), list(marked.values()))

    def _frame(self, index: int, place: Span) -> Frame:
        """What is written around a reply and, where it is the same, around those after it."""
        _, closing = self._around([index], self._messages[: index + 1]) or ("", "")
        closing = closing.removesuffix(self._header)
        asked = self._render(self._messages[:index], True)
        asking = asked[_alike(asked, self._render(self._messages[:index], False).removesuffix(self._header)) :]
        if not (asking.strip() and self._text.startswith(asked, 0, place[0])):
            return Frame(closing=closing)
        opening = self._text[len(asked) : place[0]]
        return Frame(asking + opening, opening, closing)

    def _placed_span(self, index: int, place: Span, frame: Frame) -> Span:
        first, last = place
        if self._is_last(index):
            tail = self._text[last:].removesuffix(self._header)
            end = last + len(tail.rstrip())
        else:
            end = frame.end(self._text, last)
        if frame.asking and self._text.endswith(frame.asking, 0, first):
            return first - len(frame.opening), end
        asked = self._render(self._messages[:index], True)
        return min(first, len(asked)) if self._text.startswith(asked) else first, end

    def _turn_span(self, index: int, turn: Span, own: dict[int, Span]) -> Span:
        """A turn without white space of the template at its end, and without a header for the next reply."""
        first, last = turn
        shown = self._text[:last].removesuffix(self._header)
        end = len(shown.rstrip())
        if self._marks.may_end_in_space(self._messages[index]):
            if index in own:
                end = max(end, own[index][1])
            elif around := self._around([index], self._messages[: index + 1]):
                tail = around[1]
                if self._text.endswith(tail, 0, last):
                    end = max(end, last - len(tail))
        return first, max(first, end)

    def _found_span(self, index: int, least: int) -> Span:
        """A reply as it was written, after what is written before it."""
        asked = self._render(self._messages[:index], True)
        before = len(asked)
        if not self._text.startswith(asked):
            before = _alike(self._text, self._render(self._messages[:index], False))
        return self._marks.search(self._text, self._messages[index], max(least, before))

    def _is_last(self, index: int) -> bool:
        return index == len(self._messages) - 1


def _alike(text: str, other: str) -> int:
    """Characters in which two texts begin alike."""
    size = min(len(text), len(other))
    return next((at for at in range(size) if text[at] != other[at]), size)


def _aligned(text: str, pieces: Sequence[str]) -> list[Span]:
    """What stands between pieces of a text, in order; nothing when they are not all of it or leave a choice."""
    if not pieces or not text.startswith(pieces[0]) or not text.endswith(pieces[-1]):
        return []
    inner = pieces[1:-1]
    end = len(text) - len(pieces[-1])
    early, at = [], len(pieces[0])
    for piece in inner:
        found = text.find(piece, at, end)
        early.append(found)
        at = found + len(piece)
    late, until = [], end
    for piece in reversed(inner):
        until = text.rfind(piece, len(pieces[0]), until)
        late.append(until)
    if -1 in early or early != late[::-1] or at > end:
        return []
    starts = [len(pieces[0]), *(first + len(piece) for first, piece in zip(early, inner, strict=True))]
    return list(zip(starts, [*early, end], strict=True))
