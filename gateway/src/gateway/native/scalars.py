"""One value of a protobuf field from its JSON form or from the text of a query parameter.

Each function raises ValueError with what was expected; ProtoJSON says what is accepted: numbers as strings, enum
values by name or number, bytes in either base64 alphabet. Enum names may also be in lower case and without the prefix
of their type.
"""

import base64
import binascii
import math
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

Parse = Callable[[Any], Any]

_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_TRUTH = {"true": True, "false": False}
_LARGEST_SINGLE = 3.4028235677973366e38


def from_json(field: FieldDescriptor, value: Any) -> Any:
    """The value of a scalar field (not a message) from its JSON form."""
    return _parser(field)(value)


def from_text(field: FieldDescriptor, text: str) -> Any:
    """The value of a scalar field from a query parameter or a path variable."""
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        if text not in _TRUTH:
            raise ValueError(f'"true" or "false" was expected, not {shown(text)}')
        return _TRUTH[text]
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM and text.lstrip("-").isdigit():
        return int(text)
    return from_json(field, text)


def well_known(message: Message, value: Any) -> None:
    """Fills a well-known type from its own JSON form."""
    try:
        json_format.ParseDict(value, message)
    except (json_format.ParseError, TypeError, ValueError, AttributeError) as error:
        name = message.DESCRIPTOR.name
        raise ValueError(f"a google.protobuf.{name} was expected, not {shown(value)}: {error}") from None


def shown(value: Any) -> str:
    """A short form of a value for a message."""
    text = f'"{value}"' if isinstance(value, str) else _kind(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def hint(name: str, known: Mapping[str, Any]) -> str:
    """'; did you mean X?' when a known name is near, else nothing."""
    near = get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


@cache
def _parser(field: FieldDescriptor) -> Parse:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return _bytes if field.type == FieldDescriptor.TYPE_BYTES else _string
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return _bool
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        assert field.enum_type is not None
        return _enum_parser(field.enum_type)
    if kind in _RANGES:
        return _integer_parser(*_RANGES[kind])
    return _float if kind == FieldDescriptor.CPPTYPE_FLOAT else _double


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    return "an array" if isinstance(value, list) else "an object"


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a string was expected, not {shown(value)}")
    return value


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"true or false was expected, not {shown(value)}")
    return value


def _bytes(value: Any) -> bytes:
    text = _string(value).replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        raise ValueError("base64 was expected") from None


def _double(value: Any) -> float:
    if isinstance(value, str) and value in _NOT_FINITE:
        return _NOT_FINITE[value]
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        if isinstance(value, str) and not value.isascii():
            raise ValueError
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"a number was expected, not {shown(value)}") from None
    if not math.isfinite(number):
        raise ValueError(f"{shown(value)} is too large for a number")
    return number


def _float(value: Any) -> float:
    number = _double(value)
    if math.isfinite(number) and abs(number) >= _LARGEST_SINGLE:
        raise ValueError(f"{shown(value)} is too large for a single-precision number")
    return number


def _integer_parser(low: int, high: int) -> Parse:
    def parse(value: Any) -> int:
        number = _whole(value)
        if not low <= number <= high:
            raise ValueError(f"{shown(value)} is outside {low} to {high}")
        return number

    return parse


def _whole(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and len(value) <= 20 and value.isascii() and value.removeprefix("-").isdigit():
        return int(value)
    try:
        number = _double(value)
    except ValueError:
        number = math.nan
    if not number.is_integer():
        raise ValueError(f"a whole number was expected, not {shown(value)}")
    return int(number)


def _enum_parser(enum: EnumDescriptor) -> Parse:
    prefix = _prefix(enum)
    numbers = {value.name: value.number for value in enum.values}
    short = {name.removeprefix(prefix).lower(): number for name, number in numbers.items()}
    lower = {name.lower(): number for name, number in numbers.items()}

    def parse(value: Any) -> int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if not isinstance(value, str):
            raise ValueError(f"one of {', '.join(numbers)} was expected, not {shown(value)}")
        number = numbers.get(value, lower.get(value.lower(), short.get(value.lower())))
        if number is None:
            raise ValueError(f"one of {', '.join(numbers)} was expected, not {shown(value)}")
        return number

    return parse


def _prefix(enum: EnumDescriptor) -> str:
    first: str = enum.values[0].name
    return first.removesuffix("UNSPECIFIED")
