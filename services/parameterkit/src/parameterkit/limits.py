"""The ranges that the contracts give their fields (protovalidate), for descriptions and for early checks."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from buf.validate import validate_pb2
from google.protobuf.descriptor import FieldDescriptor

_NARROWED = ("at_least", "at_most", "choices")
_NUMBERS = ("double", "float", "int32", "int64", "uint32", "uint64")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a value must satisfy; None is no limit. above and below are the bounds that a value must not equal."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    pattern: str | None = None
    min_length: int | None = None
    max_length: int | None = None
    min_items: int | None = None
    max_items: int | None = None
    unique: bool = False
    required: bool = False

    def admit(self, number: float) -> bool:
        """Whether a number lies within the bounds; NaN and infinities never do."""
        return (
            number - number == 0
            and (self.at_least is None or number >= self.at_least)
            and (self.above is None or number > self.above)
            and (self.at_most is None or number <= self.at_most)
            and (self.below is None or number < self.below)
        )

    def within(self, other: "Limits") -> "Limits":
        """These limits with the bounds and choices of narrower ones in the place of their own."""
        given = {name: value for name in _NARROWED if (value := getattr(other, name)) not in (None, ())}
        if other.at_least is not None:
            given["above"] = None
        if other.at_most is not None:
            given["below"] = None
        return replace(self, **given)

    def interval(self) -> str:
        """The bounds as an interval, for example "(0, 1]"."""
        low = "(-∞" if self.above is None else f"({self.above:.15g}"
        high = "∞)" if self.below is None else f"{self.below:.15g})"
        low = low if self.at_least is None else f"[{self.at_least:.15g}"
        high = high if self.at_most is None else f"{self.at_most:.15g}]"
        return f"{low}, {high}"


@cache
def limits(field: FieldDescriptor) -> Limits:
    """The limits of a field; of its items when it is repeated, beside those on their number."""
    rules = field.GetOptions().Extensions[validate_pb2.field]
    kind = rules.WhichOneof("type")
    required = bool(rules.required)
    found: dict[str, Any] = {"required": required}
    if kind is None:
        return Limits(**found)
    rule = getattr(rules, kind)
    if kind in _NUMBERS:
        found |= _bounds(rule)
        if kind.startswith("uint") and found["at_least"] is None:
            found["at_least"] = 0
    elif kind == "string":
        found |= _text(rule)
        found["required"] |= rule.min_len > 0
    elif kind == "repeated":
        found |= _text(rule.items.string) if rule.items.WhichOneof("type") == "string" else {}
        found |= {"min_items": _given(rule, "min_items"), "max_items": _given(rule, "max_items"), "unique": rule.unique}
    elif kind == "map":
        found |= {"min_items": _given(rule, "min_pairs"), "max_items": _given(rule, "max_pairs")}
    elif kind == "enum":
        found["required"] |= 0 in rule.not_in
    return Limits(**found)


def _bounds(rule: Any) -> dict[str, Any]:
    named = {"at_least": "gte", "above": "gt", "at_most": "lte", "below": "lt"}
    return {name: _given(rule, member) for name, member in named.items()}


def _text(rule: Any) -> dict[str, Any]:
    return {
        "choices": tuple(getattr(rule, "in")),
        "pattern": _given(rule, "pattern"),
        "min_length": _given(rule, "min_len"),
        "max_length": _given(rule, "max_len"),
    }


def _given(rule: Any, member: str) -> Any:
    return getattr(rule, member) if rule.HasField(member) else None
