"""Settable parameters by name: fields of a message and of those in it, as text or as numbers."""

import difflib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from tunesmith.client.errors import InvalidArgument, Problem

Value = str | int | float | bool | list[str] | tuple[str, ...]

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_INTEGERS = (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_INT64)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A settable field: the way from a whole message to the one that holds it, and its descriptor."""

    holder: Callable[[Any], Message]
    field: FieldDescriptor


def scalars(kind: Descriptor, prefix: str, holder: Callable[[Any], Message]) -> dict[str, Parameter]:
    """The fields of a message that are no messages themselves, by their names with a prefix."""
    fields = [field for field in kind.fields if field.message_type is None]
    return {prefix + field.name: Parameter(holder, field) for field in fields}


def set_all(message: Message, parameters: Mapping[str, Parameter], values: Mapping[str, Value]) -> None:
    """Sets parameters of a message. Raises InvalidArgument with one problem for each name or value that is wrong."""
    refuse(set_each(message, parameters, values))


def set_each(message: Message, parameters: Mapping[str, Parameter], values: Mapping[str, Value]) -> list[Problem]:
    """Sets what can be set of a message; one problem for each name or value that is wrong."""
    return [problem for name, value in values.items() if (problem := _set(message, parameters, name, value))]


def refuse(problems: Sequence[Problem]) -> None:
    """Raises InvalidArgument when there are problems."""
    if problems:
        raise InvalidArgument(f"{len(problems)} of the parameters cannot be used", problems=problems)


def _set(message: Message, parameters: Mapping[str, Parameter], name: str, value: Value) -> Problem | None:
    parameter = parameters.get(name)
    if parameter is None:
        near = difflib.get_close_matches(name, parameters, n=3, cutoff=0.6)
        advice = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(sorted(parameters))}"
        return Problem(name, f"there is no such parameter; {advice}")
    try:
        converted = _convert(parameter.field, value)
        holder = parameter.holder(message)
        if parameter.field.is_repeated:
            getattr(holder, parameter.field.name).extend(converted)
        else:
            setattr(holder, parameter.field.name, converted)
    except (ValueError, TypeError) as error:
        return Problem(name, str(error))
    return None


def _convert(field: FieldDescriptor, value: Value) -> object:
    if field.is_repeated:
        items = _split(value.strip()) if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            raise ValueError(f"takes a list, for example a,b; not {value!r}")
        return [str(item).strip() for item in items]
    if field.enum_type is not None:
        return _enum(field.enum_type, str(value))
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return _truth(value)
    if field.cpp_type in _INTEGERS:
        return _integer(value)
    if field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return number(value)
    return str(value)


def _split(text: str) -> list[str]:
    """The texts of a list that is written in JSON or with commas. Raises ValueError."""
    if not (text.startswith("[") and text.endswith("]")):
        return text.split(",")
    try:
        found = json.loads(text)
    except ValueError:
        within = text[1:-1]  # a shell takes the quotes of ["a","b"]; of a single [END] the brackets may be the text
        return (within if "," in within and not {"[", "]"} & set(within) else text).split(",")
    if not all(isinstance(item, str) for item in found):
        raise ValueError(f"takes a list of texts, for example a,b; not {text}")
    return list(found)


def _enum(enum: EnumDescriptor, text: str) -> int:
    names = list(enum.values_by_name)
    prefix = names[0].removesuffix("UNSPECIFIED")
    short = {name.removeprefix(prefix).lower(): name for name in names[1:]}
    wanted = short.get(text.lower().removeprefix(prefix.lower()))
    if wanted is None:
        raise ValueError(f"takes {', '.join(short)}; not {text!r}")
    return enum.values_by_name[wanted].number


def _truth(value: Value) -> bool:
    text = str(value).lower()
    if text not in _TRUE + _FALSE:
        raise ValueError(f"takes true or false; not {value!r}")
    return text in _TRUE


def _integer(value: Value) -> int:
    found = number(value)
    if not found.is_integer():
        raise ValueError(f"takes a whole number; not {value!r}")
    return int(found)


def number(value: Value) -> float:
    """A finite number. Raises ValueError."""
    try:
        found = float(value)  # type: ignore[arg-type]  # what is not a number is refused below
    except (TypeError, ValueError):
        raise ValueError(f"takes a number; not {value!r}") from None
    if not math.isfinite(found) or isinstance(value, bool):
        raise ValueError(f"takes a finite number; not {value!r}")
    return found
