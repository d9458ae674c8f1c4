"""Chat templates that only lay messages out are rendered once for each order of roles; then texts are joined.

A template is run with stand-ins in place of the contents. A stand-in can be written out, joined to other text and
stripped of white space; whatever else a template does with one, so that its output could depend on what a message
says, makes the template one that must be rendered for every conversation. What a plan gives is therefore exactly what
the template gives.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NoReturn, cast

from jinja2 import TemplateError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from modelkit.datasets import Message
from modelkit.replies import Span

# Filters that look at no content, or that a stand-in answers for itself.
FILTERS = frozenset({"trim", "length", "count", "first", "last", "default", "d", "list", "tojson", "items"})
# Parts of a template in which text is joined behind a stand-in's back.
OPAQUE = (nodes.AssignBlock, nodes.FilterBlock, nodes.Macro, nodes.Import, nodes.FromImport, nodes.Include)
STRIPS = ("strip", "lstrip", "rstrip")
MARK = re.compile('\x02"é<\n(\\d+):(raw|strip|lstrip|rstrip)\x03')
CORE = re.compile(r"\d:(raw|strip|lstrip|rstrip)", re.IGNORECASE)


class DependsOnContent(Exception):
    """The output may depend on what a message says."""


def _refuse(*_: object, **__: object) -> NoReturn:
    raise DependsOnContent


class StandIn(str):
    """Text that stands for a message's content, or has such text in it. Everything that could look at it refuses."""

    __slots__ = ()

    def __str__(self) -> str:
        return str.__str__(self)

    def __add__(self, other: str) -> "StandIn":
        return StandIn(str.__add__(self, other)) if isinstance(other, str) else _refuse()

    def __radd__(self, other: str) -> "StandIn":
        return StandIn(str.__add__(other, self)) if isinstance(other, str) else _refuse()

    def __bool__(self) -> bool:
        return True  # plans are for contents that are not empty

    def _stripped(self, how: str, characters: object = None) -> "StandIn":
        found = MARK.fullmatch(str.__str__(self))
        if characters is not None or found is None:
            _refuse()
        assert found is not None
        return _stand_in(int(found[1]), how) if found[2] == "raw" or found[2] == how else _refuse()

    def strip(self, characters: object = None) -> "StandIn":
        return self._stripped("strip", characters)

    def lstrip(self, characters: object = None) -> "StandIn":
        return self._stripped("lstrip", characters)

    def rstrip(self, characters: object = None) -> "StandIn":
        return self._stripped("rstrip", characters)


_OWN = {*vars(StandIn), "__class__", "__doc__", "__new__", "__init__", "__init_subclass__", "__getattribute__"}
_OWN |= {"__setattr__", "__delattr__", "__dir__", "__reduce__", "__reduce_ex__", "__repr__", "__subclasshook__"}
for _name in vars(str):
    if _name not in _OWN:
        setattr(StandIn, _name, _refuse)


def _stand_in(index: int, how: str = "raw") -> StandIn:
    return StandIn(f'\x02"é<\n{index}:{how}\x03')


@dataclass(frozen=True, slots=True)
class Plan:
    """How a conversation of an order of roles is written: texts and messages (index, how it is stripped) in turn.

    spans are ranges [first, last) of pieces that the assistant writes.
    """

    pieces: tuple[str | tuple[int, str], ...]
    spans: tuple[Span, ...]

    def fill(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """The text of a conversation and the character ranges of the replies."""
        texts: list[str] = []
        ends = [0]
        size = 0
        for piece in self.pieces:
            if isinstance(piece, str):
                text = piece
            else:
                text = messages[piece[0]]["content"]
                if piece[1] != "raw":
                    text = getattr(text, piece[1])()
            texts.append(text)
            size += len(text)
            ends.append(size)
        return "".join(texts), [(ends[first], ends[last]) for first, last in self.spans]


def lays_out_only(source: str, environment: ImmutableSandboxedEnvironment) -> bool:
    """Whether nothing in a template's text hides from a stand-in what is done with it."""
    tree = environment.parse(source)
    if any(next(tree.find_all(kind), None) for kind in OPAQUE):
        return False
    if any(not isinstance(block.call.node, nodes.ExtensionAttribute) for block in tree.find_all(nodes.CallBlock)):
        return False
    return all(item.name in FILTERS for item in tree.find_all(nodes.Filter))


def let_through(environment: ImmutableSandboxedEnvironment) -> None:
    """Makes an environment join stand-ins by itself and leave everything else to what bounds it."""
    bounded: Callable[..., Any] = environment.call_binop

    def call_binop(context: Any, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, StandIn) or isinstance(right, StandIn):
            return left + right if operator == "+" else _refuse()
        return bounded(context, operator, left, right)

    environment.call_binop = call_binop  # type: ignore[method-assign]


def join_parts(parts: Any, plain: Callable[[Any], str]) -> str:
    """Joins what the template joins; a stand-in among the parts makes the whole one."""
    items = list(parts)
    if any(isinstance(item, StandIn) for item in items):
        return StandIn("".join(str(item) for item in items))
    return plain(items)


def stand_ins(roles: Sequence[str]) -> list[Message]:
    """A conversation of stand-ins."""
    return [cast(Message, {"role": role, "content": _stand_in(index)}) for index, role in enumerate(roles)]


def plan_of(text: str, spans: Sequence[Span]) -> Plan:
    """The plan that a text rendered from stand-ins stands for. Raises DependsOnContent."""
    cuts = sorted({0, len(text), *(edge for span in spans for edge in span), *_edges(text)})
    starts = {start: index for index, start in enumerate(cuts)}
    pieces = tuple(_piece(text[start:end]) for start, end in pairwise(cuts))
    return Plan(pieces, tuple((starts[start], starts[end]) for start, end in spans))


class StoodIn:
    """Replies that stand-ins stand for, which say themselves where they are; see modelkit.replies.Marks."""

    def marked(self, message: Message) -> Message:
        """The message, which is recognised as it is."""
        return message

    def split(self, text: str, messages: Sequence[Message]) -> list[str]:
        """What stands before, between and after them. Raises DependsOnContent."""
        known = [found[1] for message in messages if (found := MARK.fullmatch(str(message["content"])))]
        places = [found for found in MARK.finditer(text) if found[1] in known]
        if [found[1] for found in places] != known:
            raise DependsOnContent
        edges = [0, *(edge for found in places for edge in found.span()), len(text)]
        return [text[first:last] for first, last in zip(edges[::2], edges[1::2], strict=True)]

    def may_end_in_space(self, message: Message) -> bool:
        """Always."""
        return True

    def is_whole(self, shown: str, message: Message) -> bool:
        """Always."""
        return True

    def search(self, text: str, message: Message, start: int) -> Span:
        """Never: what a message says would decide. Raises DependsOnContent."""
        raise DependsOnContent


def _edges(text: str) -> Iterator[int]:
    for found in MARK.finditer(text):
        yield from found.span()


def _piece(text: str) -> str | tuple[int, str]:
    if found := MARK.fullmatch(text):
        return int(found[1]), found[2]
    if "\x02" in text or "\x03" in text or CORE.search(text):
        raise DependsOnContent  # a stand-in was changed on its way
    return text


TROUBLE = (DependsOnContent, TemplateError, TypeError, ValueError, AttributeError)
