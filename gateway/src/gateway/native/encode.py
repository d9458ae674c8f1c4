"""Protobuf messages to what orjson serializes: ProtoJSON with proto field names, compiled once per message type.

Three choices differ from json_format's defaults: names are those of the .proto file, fields without presence are
always written, and 64-bit integers are numbers as far as a double holds them exactly (strings beyond, as json_format's
unquote_int64_if_possible has it). json_format takes the result back.
"""

import base64
import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache, partial
from typing import Any

from google.protobuf import json_format, timestamp_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

Convert = Callable[[Any], Any]

EXACT = 2**53
EPOCH = datetime.fromtimestamp(0, UTC)

_SINGLE = struct.Struct("f")

_LONG = {FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64}
_SHORT = {FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32}
_PLAIN = {FieldDescriptor.CPPTYPE_BOOL, *_SHORT}


class MessageEncoder:
    """Turns messages of one type into dicts. The table is built at the first call, so types may contain themselves."""

    def __init__(self, descriptor: Descriptor) -> None:
        self._descriptor = descriptor
        self._defaults: dict[str, Any] | None = None
        self._table: dict[FieldDescriptor, tuple[str, Convert | None]] = {}

    def __call__(self, message: Message) -> dict[str, Any]:
        if self._defaults is None:
            self._defaults = self._build()
        document = self._defaults.copy()
        table = self._table
        for field, value in message.ListFields():
            name, convert = table[field]
            document[name] = value if convert is None else convert(value)
        return document

    def _build(self) -> dict[str, Any]:
        defaults: dict[str, Any] = {}
        for field in self._descriptor.fields:
            self._table[field] = (field.name, _converter(field))
            if is_map(field):
                defaults[field.name] = {}
            elif field.is_repeated:
                defaults[field.name] = []
            elif not field.has_presence:
                convert = scalar_converter(field)
                defaults[field.name] = convert(field.default_value) if convert else field.default_value
        return defaults


@cache
def message_encoder(descriptor: Descriptor) -> Convert:
    """The encoder of a message type; well-known types have forms of their own."""
    if descriptor.full_name == timestamp_pb2.Timestamp.DESCRIPTOR.full_name:
        return encode_timestamp
    if descriptor.file.package == "google.protobuf":
        return partial(json_format.MessageToDict, unquote_int64_if_possible=True)
    return MessageEncoder(descriptor)


def is_map(field: FieldDescriptor) -> bool:
    """Whether a field is a map."""
    kind = field.message_type
    return kind is not None and kind.GetOptions().map_entry


def _converter(field: FieldDescriptor) -> Convert | None:
    if is_map(field):
        return _map_converter(field)
    convert = scalar_converter(field)
    if not field.is_repeated:
        return convert
    if convert is None:
        return list
    return lambda values: [convert(value) for value in values]


def _map_converter(field: FieldDescriptor) -> Convert:
    assert field.message_type is not None
    key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
    convert = scalar_converter(value)
    name: Callable[[Any], str] = _truth if key.cpp_type == FieldDescriptor.CPPTYPE_BOOL else str
    if convert is None:
        return lambda entries: {name(key): entries[key] for key in entries}
    return lambda entries: {name(key): convert(entries[key]) for key in entries}


def scalar_converter(field: FieldDescriptor) -> Convert | None:
    """What turns one value of a field into JSON; None when the value is JSON already."""
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_MESSAGE:
        assert field.message_type is not None
        return message_encoder(field.message_type)
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        assert field.enum_type is not None
        return _enum_converter(field.enum_type)
    if kind in _PLAIN or field.type == FieldDescriptor.TYPE_STRING:
        return None
    if kind in _LONG:
        return encode_long
    if kind == FieldDescriptor.CPPTYPE_DOUBLE:
        return encode_double
    return _encode_float if kind == FieldDescriptor.CPPTYPE_FLOAT else _encode_bytes


class _Names(dict[int, Any]):
    """Names of an enum's values; a number without one stays a number."""

    def __missing__(self, number: int) -> int:
        return number


def _enum_converter(enum: EnumDescriptor) -> Convert:
    if enum.full_name == "google.protobuf.NullValue":
        return lambda _: None
    return _Names({number: value.name for number, value in enum.values_by_number.items()}).__getitem__


def encode_long(value: int) -> int | str:
    """A 64-bit integer: a number where every JSON reader keeps it whole."""
    return value if -EXACT <= value <= EXACT or float(value) == value else str(value)


def encode_double(value: float) -> float | str:
    """A double; what JSON has no number for becomes "NaN", "Infinity" or "-Infinity"."""
    if value - value == 0:
        return value
    if value != value:  # noqa: PLR0124 - only NaN is not itself
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _encode_float(value: float) -> float | str:
    document = encode_double(value)
    if isinstance(document, str):
        return document
    shorter = (float(f"{document:.{digits}g}") for digits in range(6, 9))
    return next((number for number in shorter if _SINGLE.unpack(_SINGLE.pack(number))[0] == document), document)


def _encode_bytes(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _truth(key: bool) -> str:
    return "true" if key else "false"


@lru_cache(maxsize=4096)
def _whole_second(seconds: int) -> str:
    return (EPOCH + timedelta(seconds=seconds)).isoformat()[:19]


def encode_timestamp(value: timestamp_pb2.Timestamp) -> str:
    """RFC 3339 in UTC with 0, 3, 6 or 9 fractional digits."""
    second, nanos = _whole_second(value.seconds), value.nanos
    if nanos == 0:
        return f"{second}Z"
    if nanos % 1_000_000 == 0:
        return f"{second}.{nanos // 1_000_000:03}Z"
    return f"{second}.{nanos // 1000:06}Z" if nanos % 1000 == 0 else f"{second}.{nanos:09}Z"
