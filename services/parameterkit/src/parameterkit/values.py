"""Values of parameters: from JSON or from the text of a form, checked, and into the fields of a FinetuneSpec."""

import json
import re
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from parameterkit import messages
from parameterkit.limits import Limits
from parameterkit.messages import Received, Refused
from parameterkit.parameter import Parameter, enum_words
from tunesmith.task.v1 import spec_pb2

_WIDEST = {
    FieldDescriptor.CPPTYPE_INT32: 2**31 - 1,
    FieldDescriptor.CPPTYPE_UINT32: 2**32 - 1,
    FieldDescriptor.CPPTYPE_INT64: 2**63 - 1,
}
_DEVICES = re.compile(r"([0-9]+(,[0-9]+)*)?")
_DATASET_ID = re.compile(r"[0-9a-z]{26}")
_STORED_CHECKPOINT = re.compile(r"tasks/(?P<task>[0-9a-z]{1,64})/attempts/[0-9]{1,9}/checkpoint-[0-9]{1,9}")
_HUB = re.compile(r"hf://(datasets/)?(?P<id>[^/]+/[^/]+)")
_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


def parse(parameter: Parameter, value: Any, limits: Limits) -> Any:
    """A value in plain types: a word for a choice, list[str] for a list. Raises Refused.

    limits are those of the surface (`ranges`).
    """
    return _PARSERS[parameter.name if parameter.name in _PARSERS else parameter.type](parameter, value, limits)


def from_text(parameter: Parameter, text: str) -> Any:
    """What the text of a form field or a command's option says, to be parsed; null and the empty text say nothing."""
    text = text.strip()
    if parameter.type == "boolean":
        return {**dict.fromkeys(_TRUE, True), **dict.fromkeys(_FALSE, False)}.get(text.lower(), text or None)
    if parameter.type in ("text", "path", "choice"):
        return text or None
    try:
        return json.loads(text) if text else None
    except ValueError:
        return text


def from_form(parameter: Parameter, value: Any) -> Any:
    """What a field of a form says, to be parsed: a text, or the texts of a field that is there several times.

    Several texts of a list are one list, each read as one alone; of what is no list there may be one. What is no text
    stays as it is.
    """
    if isinstance(value, str):
        return from_text(parameter, value)
    if not (isinstance(value, list) and all(isinstance(text, str) for text in value)):
        return value
    said = [(text, read) for text in value if (read := from_text(parameter, text)) is not None]
    if parameter.type == "list":
        return [item for text, read in said for item in (read if isinstance(read, list) else _items(text))] or None
    reads = [read for _, read in said]
    return reads[0] if len(reads) == 1 else reads or None


def assign(spec: spec_pb2.FinetuneSpec, parameter: Parameter, value: Any) -> None:
    """Sets the field of a parameter to a parsed value."""
    holder, name = _holder(spec, parameter.path)
    enum = parameter.field.enum_type
    if parameter.path == "dataset.path":
        name_dataset(holder, value)
    elif enum is not None:
        setattr(holder, name, enum_words(enum)[value])
    elif isinstance(value, list):
        holder.ClearField(name)
        getattr(holder, name).extend(value)
    else:
        setattr(holder, name, value)


def is_set(spec: spec_pb2.FinetuneSpec, path: str) -> bool:
    """Whether the field at a path, one that may be left out, is set."""
    holder, name = _holder(spec, path)
    return bool(holder.HasField(name))


def clear(spec: spec_pb2.FinetuneSpec, path: str) -> None:
    """Makes the field at a path one that is not set."""
    holder, name = _holder(spec, path)
    holder.ClearField(name)


def name_dataset(source: spec_pb2.DatasetSource, text: str) -> None:
    """Sets where data lies from what people write: a path, an id, hf://owner/name or another address."""
    if hub := _HUB.fullmatch(text):
        source.hub_id = hub["id"]
    elif "://" in text:
        source.uri = text
    elif _DATASET_ID.fullmatch(text):
        source.dataset_id = text
    elif text:
        source.path = text


def dataset_name(source: spec_pb2.DatasetSource) -> str:
    """What people write for where data lies, as `name_dataset` takes it."""
    kind = source.WhichOneof("source")
    text = str(getattr(source, kind)) if kind else ""
    return f"hf://{text}" if kind == "hub_id" else text


def checkpoint_task(text: str) -> str:
    """The task whose stored checkpoint a text names, as lists of checkpoints do; empty for a directory's path."""
    found = _STORED_CHECKPOINT.fullmatch(text)
    return found["task"] if found else ""


def _holder(spec: spec_pb2.FinetuneSpec, path: str) -> tuple[Any, str]:
    """The message that holds the field at a path, and the field's name in it."""
    *parents, name = path.split(".")
    holder: Any = spec
    for parent in parents:
        holder = getattr(holder, parent)
    return holder, name


def _number(parameter: Parameter, value: Any, limits: Limits) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused(messages.NUMBER, received=Received(value))
    whole = parameter.type == "integer"
    if whole and isinstance(value, float) and not value.is_integer():
        raise Refused(messages.WHOLE, received=Received(value))
    if not limits.admit(value):
        raise Refused(messages.RANGE, interval=limits.interval(), received=Received(value))
    try:
        number = int(value) if whole else float(value)
    except OverflowError:
        raise Refused(messages.TOO_LARGE, received=Received(value)) from None
    if whole and number > _WIDEST[parameter.field.cpp_type]:
        raise Refused(messages.TOO_LARGE, received=Received(value))
    return number


def _truth(_parameter: Parameter, value: Any, _limits: Limits) -> bool:
    if not isinstance(value, bool):
        raise Refused(messages.TRUTH, received=Received(value))
    return value


def _choice(parameter: Parameter, value: Any, limits: Limits) -> str:
    if not isinstance(value, str) and parameter.field.enum_type is None and not parameter.switch:
        raise Refused(messages.TEXT, received=Received(value))
    choices = limits.choices or parameter.choices
    word = value.lower() if isinstance(value, str) else ""
    word = parameter.words.get(word, word)
    if word not in choices:
        raise Refused(messages.CHOICE, choices=choices, received=Received(value))
    return word


def _text(_parameter: Parameter, value: Any, limits: Limits) -> str:
    if not isinstance(value, str):
        raise Refused(messages.TEXT, received=Received(value))
    if not value.strip():
        raise Refused(messages.EMPTY)
    if limits.max_length is not None and len(value) > limits.max_length:
        raise Refused(messages.LENGTH, most=limits.max_length, count=len(value))
    if "\0" in value:
        raise Refused(messages.CHARACTERS, received=Received(value.replace("\0", "\\0")))
    return value


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",")]


def _texts(_parameter: Parameter, value: Any, limits: Limits) -> list[str]:
    items = _items(value) if isinstance(value, str) else value
    if not (isinstance(items, list) and all(isinstance(item, str) and item for item in items)):
        raise Refused(messages.TEXTS, received=Received(value))
    if limits.max_items is not None and len(items) > limits.max_items:
        raise Refused(messages.COUNT, most=limits.max_items, count=len(items))
    for index, item in enumerate(items):
        if "\0" in item or (limits.pattern and not re.search(limits.pattern, item)):
            raise Refused(messages.CHARACTERS, received=Received(item))
        if limits.unique and item in items[:index]:
            raise Refused(messages.TWICE, received=Received(item))
    return items


def _devices(_parameter: Parameter, value: Any, _limits: Limits) -> str:
    text = value
    if isinstance(value, list):
        text = ",".join(str(item) for item in value)
    elif isinstance(value, int) and not isinstance(value, bool):
        text = str(value)
    text = text.replace(" ", "") if isinstance(text, str) else None
    if text is None or not _DEVICES.fullmatch(text):
        raise Refused(messages.DEVICES, received=Received(value))
    return text


_PARSERS: dict[str, Callable[[Parameter, Any, Limits], Any]] = {
    "integer": _number,
    "number": _number,
    "boolean": _truth,
    "choice": _choice,
    "text": _text,
    "path": _text,
    "list": _texts,
    "cuda_visible_devices": _devices,
}
