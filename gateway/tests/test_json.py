"""Messages to JSON and back: the same as json_format, but for the choices that are documented."""

import json
import math
from functools import cache
from typing import Any

import orjson
import pytest
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    duration_pb2,
    field_mask_pb2,
    json_format,
    message_factory,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
)
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.native.decode import Decoder
from gateway.native.encode import is_map, message_encoder
from tunesmith.task.v1 import event_pb2, task_pb2, task_service_pb2

F = FieldDescriptor
NOT_FINITE = st.sampled_from([math.nan, math.inf, -math.inf])
FINITE = {"allow_nan": False, "allow_infinity": False}
SCALARS = {
    F.TYPE_DOUBLE: NOT_FINITE | st.floats(width=64, **FINITE),
    F.TYPE_FLOAT: NOT_FINITE | st.floats(width=32, **FINITE),
    F.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    F.TYPE_SINT32: st.integers(-(2**31), 2**31 - 1),
    F.TYPE_FIXED32: st.integers(0, 2**32 - 1),
    F.TYPE_UINT32: st.integers(0, 2**32 - 1),
    F.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    F.TYPE_UINT64: st.integers(0, 2**64 - 1),
    F.TYPE_BOOL: st.booleans(),
    F.TYPE_STRING: st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    F.TYPE_BYTES: st.binary(max_size=5),
}


@cache
def everything() -> Descriptor:
    """A message with a field of every kind, which the contracts do not have."""
    file = descriptor_pb2.FileDescriptorProto(name="gateway_test.proto", package="gateway_test", syntax="proto3")
    for known in (timestamp_pb2, duration_pb2, wrappers_pb2, struct_pb2, field_mask_pb2):
        file.dependency.append(known.DESCRIPTOR.name)
    message = file.message_type.add(name="Everything")
    for number, kind in enumerate(SCALARS, 1):
        message.field.add(name=f"one_{number}", number=number, type=kind, label=F.LABEL_OPTIONAL)
        message.field.add(name=f"many_{number}", number=100 + number, type=kind, label=F.LABEL_REPEATED)
    special = ("Timestamp", "Duration", "Int64Value", "Struct", "FieldMask")
    for number, name in enumerate(special, 200):
        field = message.field.add(name=f"known_{number}", number=number, type=F.TYPE_MESSAGE, label=F.LABEL_OPTIONAL)
        field.type_name = f".google.protobuf.{name}"
    own = message.field.add(name="itself", number=300, type=F.TYPE_MESSAGE, label=F.LABEL_OPTIONAL)
    own.type_name = ".gateway_test.Everything"
    for number, (key, value) in enumerate(((F.TYPE_BOOL, F.TYPE_INT64), (F.TYPE_INT32, F.TYPE_BYTES)), 400):
        entry = message.nested_type.add(name=f"Map{number}Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, type=key, label=F.LABEL_OPTIONAL)
        entry.field.add(name="value", number=2, type=value, label=F.LABEL_OPTIONAL)
        field = message.field.add(name=f"map_{number}", number=number, type=F.TYPE_MESSAGE, label=F.LABEL_REPEATED)
        field.type_name = f".gateway_test.Everything.Map{number}Entry"
        field.json_name = f"map{number}"
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindMessageTypeByName("gateway_test.Everything")


def values(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    if field.enum_type is not None:
        return st.sampled_from([value.number for value in field.enum_type.values])
    if field.message_type is not None:
        return messages(field.message_type, depth - 1)
    return SCALARS[field.type]


@st.composite
def messages(draw: Any, descriptor: Descriptor, depth: int = 4) -> Message:
    """Any message of a type."""
    name = descriptor.full_name
    message = message_factory.GetMessageClass(descriptor)()
    if name == "google.protobuf.Struct":
        simple = st.one_of(st.none(), st.booleans(), st.text("x"))
        message.update(draw(st.dictionaries(st.text("ab"), simple, max_size=2)))
    elif name in ("google.protobuf.Timestamp", "google.protobuf.Duration"):
        message.seconds = draw(st.integers(-62135596800 if name.endswith("Timestamp") else 0, 253402300799))
        message.nanos = draw(st.sampled_from([0, 5_000_000, 120_000, 123_456_789]))
    elif name == "google.protobuf.FieldMask":
        message.paths.extend(draw(st.lists(st.sampled_from(["a", "b_c"]), max_size=2)))
    else:
        for field in draw(st.sets(st.sampled_from(list(descriptor.fields)), max_size=12)) if descriptor.fields else ():
            fill(draw, message, field, depth)
    return message


def fill(draw: Any, message: Message, field: FieldDescriptor, depth: int) -> None:
    if field.message_type is not None and depth == 0:
        return
    target = getattr(message, field.name)
    if is_map(field):
        key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
        for entry, item in draw(st.dictionaries(values(key, depth), values(value, depth), max_size=2)).items():
            target[entry] = item
    elif field.is_repeated:
        target.extend(draw(st.lists(values(field, depth), max_size=3)))
    elif field.message_type is not None:
        target.SetInParent()
        target.CopyFrom(draw(values(field, depth)))
    else:
        setattr(message, field.name, draw(values(field, depth)))


def encoded(message: Message) -> Any:
    return json.loads(orjson.dumps(message_encoder(message.DESCRIPTOR)(message)))


def by_json_format(message: Message) -> Any:
    text = json_format.MessageToJson(
        message,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
        unquote_int64_if_possible=True,
    )
    return json.loads(text)


TYPES = [
    task_pb2.Task.DESCRIPTOR,
    task_service_pb2.CreateTaskRequest.DESCRIPTOR,
    task_service_pb2.ListMetricsResponse.DESCRIPTOR,
    event_pb2.TaskEvent.DESCRIPTOR,
    everything(),
]


@pytest.mark.parametrize("descriptor", TYPES, ids=lambda descriptor: descriptor.name)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_the_same_as_json_format_both_ways(descriptor: Descriptor, data: st.DataObject) -> None:
    message = data.draw(messages(descriptor))
    document = encoded(message)
    assert document == by_json_format(message)
    for form in (document, json.loads(json_format.MessageToJson(message))):
        decoder, back = Decoder(), message_factory.GetMessageClass(descriptor)()
        decoder.message(back, form)
        assert decoder.problems == []
        assert back.SerializeToString(deterministic=True) == message.SerializeToString(deterministic=True)


NAMES = ["name", "spec", "finetune", "training", "labels", "dependsOn", "learning_rate", "language_model", "x"]
SIMPLE = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4))


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)


@settings(deadline=None, max_examples=100)
@given(document=st.recursive(SIMPLE, nested))
def test_any_json_is_read_or_refused(document: Any) -> None:
    decoder, request = Decoder(), task_service_pb2.CreateTaskRequest()
    decoder.message(request, document)
    request.SerializeToString()
    if not decoder.problems:
        assert json_format.ParseDict(document, task_service_pb2.CreateTaskRequest()) == request
