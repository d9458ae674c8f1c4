"""URL path templates of google.api.http and the tree that finds the route of a path.

Template = "/" Segments [ Verb ] ;  Segments = Segment { "/" Segment } ;  Verb = ":" LITERAL ;
Segment  = "*" | "**" | LITERAL | "{" FieldPath [ "=" Segments ] "}"
"""

import re
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from urllib.parse import unquote

T = TypeVar("T")

_VERB = re.compile(r":([^/{}:]+)$")
_PART = re.compile(r"\{(?P<variable>[a-z0-9_.]+)(?:=(?P<pattern>[^}]*))?\}|(?P<segment>[^/{}]+)")


@dataclass(frozen=True, slots=True)
class Variable:
    """A field path and the segments that it spans; end is None when it takes all that are left."""

    path: str
    start: int
    end: int | None


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template: segments are literals, "*" for any one or "**" for all that are left."""

    segments: tuple[str, ...]
    variables: tuple[Variable, ...]
    verb: str


def parse(template: str) -> Template:
    """Parses a template. Raises ValueError."""
    verb = _VERB.search(template)
    path = template[: verb.start()] if verb else template
    segments: list[str] = []
    variables: list[Variable] = []
    position = 0
    while position < len(path):
        part = _PART.match(path, position + 1) if path[position] == "/" else None
        if part is None:
            raise ValueError(f"{template} is not a path template")
        position = part.end()
        if part["segment"]:
            segments.append(part["segment"])
            continue
        pattern = (part["pattern"] or "*").split("/")
        start = len(segments)
        segments += pattern
        variables.append(Variable(part["variable"], start, None if "**" in pattern else len(segments)))
    if "**" in segments[:-1]:
        raise ValueError(f"{template}: ** may only be the last segment")
    return Template(tuple(segments), tuple(variables), verb[1] if verb else "")


@dataclass(slots=True)
class _Node(Generic[T]):
    literals: dict[str, "_Node[T]"] = field(default_factory=dict)
    any_one: "_Node[T] | None" = None
    all_left: dict[str, dict[str, T]] = field(default_factory=dict)
    leaves: dict[str, dict[str, T]] = field(default_factory=dict)


class Router(Generic[T]):
    """Finds what was added for a path: literals before wildcards, custom verbs before plain segments."""

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()

    def add(self, method: str, template: Template, target: T) -> None:
        """Adds a target. Raises ValueError when another one has the same method and path."""
        node = self._root
        leaves = node.leaves
        for segment in template.segments:
            if segment == "**":
                leaves = node.all_left
                break
            if segment == "*":
                node.any_one = node.any_one or _Node()
                node = node.any_one
            else:
                node = node.literals.setdefault(segment, _Node())
            leaves = node.leaves
        methods = leaves.setdefault(template.verb, {})
        if method in methods:
            raise ValueError(f"{method} {'/'.join(template.segments)}:{template.verb} has two routes")
        methods[method] = target

    def find(self, path: str) -> tuple[dict[str, T], list[str]]:
        """Targets by method for a path as it was sent, and its segments, percent-decoded. Empty when there are none."""
        segments = path[1:].split("/")
        last, colon, verb = segments[-1].rpartition(":")
        methods: dict[str, T] = {}
        if colon:
            with_verb = _decoded([*segments[:-1], last])
            methods = _search(self._root, with_verb, 0, unquote(verb))
            if methods:
                return methods, with_verb
        segments = _decoded(segments)
        return _search(self._root, segments, 0, ""), segments


def _decoded(segments: list[str]) -> list[str]:
    return [unquote(segment) if "%" in segment else segment for segment in segments]


def _search(node: _Node[T], segments: list[str], index: int, verb: str) -> dict[str, T]:
    if index == len(segments):
        return node.leaves.get(verb, {})
    segment = segments[index]
    if segment in node.literals and (found := _search(node.literals[segment], segments, index + 1, verb)):
        return found
    if node.any_one and segment and (found := _search(node.any_one, segments, index + 1, verb)):
        return found
    return node.all_left.get(verb, {})
