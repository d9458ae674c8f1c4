"""JSON Schemas (2020-12) of protobuf messages as the native API writes and reads them."""

import json
from collections.abc import Collection
from functools import cache
from importlib.resources import files
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from gateway.native.decode import is_well_known
from gateway.native.encode import is_map
from parameterkit.limits import Limits, limits

Schema = dict[str, Any]

_SCALARS: dict[int, Schema] = {
    FieldDescriptor.CPPTYPE_INT32: {"type": "integer", "format": "int32"},
    FieldDescriptor.CPPTYPE_INT64: {"type": "integer", "format": "int64"},
    FieldDescriptor.CPPTYPE_UINT32: {"type": "integer", "minimum": 0},
    FieldDescriptor.CPPTYPE_UINT64: {"type": "integer", "minimum": 0},
    FieldDescriptor.CPPTYPE_DOUBLE: {"type": "number", "format": "double"},
    FieldDescriptor.CPPTYPE_FLOAT: {"type": "number", "format": "float"},
    FieldDescriptor.CPPTYPE_BOOL: {"type": "boolean"},
}
_WELL_KNOWN: dict[str, Schema] = {
    "Timestamp": {"type": "string", "format": "date-time"},
    "Duration": {"type": "string", "examples": ["1.5s"]},
    "FieldMask": {"type": "string"},
    "Struct": {"type": "object"},
    "ListValue": {"type": "array", "items": {}},
}


@cache
def comments() -> dict[str, str]:
    """The contracts' comments by full name."""
    text = (files("tunesmith") / "comments.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def described(schema: Schema, name: str) -> Schema:
    """The schema with the comment of what it describes."""
    text = comments().get(name)
    return {**schema, "description": text} if text else schema


class Schemas:
    """Collects the schemas of messages and enums under their full names."""

    def __init__(self) -> None:
        self.components: dict[str, Schema] = {}

    def reference(self, kind: Descriptor | EnumDescriptor) -> Schema:
        """A reference to the schema of a message or an enum."""
        name = kind.full_name
        if name not in self.components:
            self.components[name] = {}
            self.components[name] = _enum(kind) if isinstance(kind, EnumDescriptor) else self.message(kind)
        return {"$ref": f"#/components/schemas/{name}"}

    def message(self, kind: Descriptor, without: Collection[str] = ()) -> Schema:
        """The schema of a message, without some of its fields."""
        fields = [field for field in kind.fields if field.name not in without]
        schema: Schema = {"type": "object", "properties": {field.name: self.field(field) for field in fields}}
        required = [field.name for field in fields if limits(field).required]
        if required:
            schema["required"] = required
        return described(schema, kind.full_name)

    def field(self, field: FieldDescriptor) -> Schema:
        """The schema of a field with its comment."""
        return described(self._shape(field), field.full_name)

    def _shape(self, field: FieldDescriptor) -> Schema:
        bounds = limits(field)
        if is_map(field):
            assert field.message_type is not None
            value = self._shape(field.message_type.fields_by_name["value"])
            return _keep({"type": "object", "additionalProperties": value, "maxProperties": bounds.max_items})
        if not field.is_repeated:
            return {**self._one(field), **limited(bounds)}
        array = {"type": "array", "items": {**self._one(field), **limited(bounds)}, "minItems": bounds.min_items}
        return _keep({**array, "maxItems": bounds.max_items, "uniqueItems": bounds.unique or None})

    def _one(self, field: FieldDescriptor) -> Schema:
        if field.enum_type is not None:
            return self.reference(field.enum_type)
        if field.message_type is not None:
            kind = field.message_type
            return _WELL_KNOWN.get(kind.name, {}) if is_well_known(kind) else self.reference(kind)
        if field.type == FieldDescriptor.TYPE_BYTES:
            return {"type": "string", "contentEncoding": "base64"}
        return _SCALARS.get(field.cpp_type, {"type": "string"})


def _enum(kind: EnumDescriptor) -> Schema:
    schema: Schema = {"type": "string", "enum": [value.name for value in kind.values]}
    scope = kind.full_name.rpartition(".")[0]
    names = [(value.name, comments().get(f"{kind.full_name}.{value.name}")) for value in kind.values]
    lines = [f"- `{name}`: {text}" for name, text in names if text]
    text = comments().get(kind.full_name, scope)
    return {**schema, "description": "\n".join([text, "", *lines])}


def limited(bounds: Limits) -> Schema:
    """The part of a schema that says what limits demand of a value."""
    return _keep(
        {
            "minimum": bounds.at_least,
            "exclusiveMinimum": bounds.above,
            "maximum": bounds.at_most,
            "exclusiveMaximum": bounds.below,
            "enum": list(bounds.choices) or None,
            "pattern": bounds.pattern,
            "minLength": bounds.min_length,
            "maxLength": bounds.max_length,
        }
    )


def _keep(schema: Schema) -> Schema:
    return {name: value for name, value in schema.items() if value is not None}
