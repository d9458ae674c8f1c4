"""JSON Schemas of training parameters as a surface takes them, by all their names."""

from collections.abc import Iterable

from gateway.native.schemas import Schema, limited
from parameterkit import Parameter, defaults, ranges

_TYPES = {"integer": "integer", "number": "number", "boolean": "boolean"}


def argument_schemas(rows: Iterable[Parameter], surface: str) -> dict[str, Schema]:
    """The schemas by name, aliases included, with the defaults and ranges of one of parameterkit's surfaces."""
    shapes: dict[str, Schema] = {}
    for row in rows:
        shape = _schema(row, surface)
        shapes[row.name] = shape
        shapes |= {alias: {**shape, "description": f"Same as {row.name}."} for alias in row.aliases}
    return shapes


def _schema(row: Parameter, surface: str) -> Schema:
    bounds, own = ranges(surface)[row.name], defaults(surface)
    shape: Schema = {"type": _TYPES.get(row.type, "string"), **limited(bounds)}
    if row.type == "list":
        shape = {"type": "array", "items": {"type": "string", **limited(bounds)}, "uniqueItems": bounds.unique}
    if row.choices:
        shape["enum"] = list(row.choices)
    shape["description"] = row.description_en
    return {**shape, "default": own[row.name]} if row.name in own else shape
