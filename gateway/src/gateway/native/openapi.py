"""The OpenAPI description of the gateway, generated from the gRPC contracts and their comments."""

import re
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from google.protobuf.descriptor import Descriptor

from gateway.backends import SERVICES
from gateway.native.decode import is_well_known
from gateway.native.encode import is_map
from gateway.native.methods import Binding, all_bindings
from gateway.native.schemas import Schema, Schemas, comments, described

_PATTERN = re.compile(r"\{([^=}]+)=[^}]*\}")
_ABOUT = """Fine-tuning on your own machines.

Members are named as in the gRPC contracts; their camelCase forms are accepted too. 64-bit integers are numbers up to
2^53 and strings beyond; NaN and infinities are the strings "NaN", "Infinity" and "-Infinity". Streams are server-sent
events whose id is the cursor, so that `Last-Event-ID` goes on where a connection broke; they end with the event `end`,
or with the event `error`. `Accept: application/x-ndjson` asks for JSON lines instead.

WebSockets tell of progress too: `/ws/training` of all of the caller's tasks, `/ws/training/{id}` of one. The token
comes in the header `Authorization`, or as the subprotocol `bearer.TOKEN` beside the subprotocol `tunesmith`.
"""
_CURSOR_HEADER = {
    "name": "Last-Event-ID",
    "in": "header",
    "schema": {"type": "string"},
    "description": "Cursor of the last event that was seen; wins over the parameter.",
}
_ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "status", "message"],
            "properties": {
                "code": {"type": "integer", "description": "The HTTP status."},
                "status": {"type": "string", "description": "The gRPC code, for example NOT_FOUND."},
                "reason": {"type": "string", "description": "Stable word for programs."},
                "message": {"type": "string", "description": "What happened and what to do about it."},
                "problems": {
                    "type": "array",
                    "description": "Everything that is wrong with the request, by field.",
                    "items": {
                        "type": "object",
                        "properties": {"field": {"type": "string"}, "message": {"type": "string"}},
                    },
                },
                "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
                "details": {"type": "array", "items": {"type": "object"}, "description": "google.rpc details."},
            },
        }
    },
}


def build(more_paths: dict[str, Any], more_schemas: dict[str, Schema]) -> dict[str, Any]:
    """The whole document; more_paths and more_schemas come from the surfaces that are not transcoded."""
    schemas = Schemas()
    paths: dict[str, Any] = {}
    for binding in all_bindings():
        operations = paths.setdefault(_PATTERN.sub(r"{\1}", binding.path), {})
        operations[binding.verb.lower()] = _operation(binding, schemas)
    services = [service for group in SERVICES.values() for service in group]
    return {
        "openapi": "3.1.0",
        "info": {"title": "Tunesmith", "version": version("tunesmith-gateway"), "description": _ABOUT},
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}],
        "tags": [described({"name": service.name}, service.full_name) for service in services],
        "paths": {**dict(sorted(paths.items())), **more_paths},
        "components": {
            "schemas": {**dict(sorted(schemas.components.items())), "Error": _ERROR, **more_schemas},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


def _operation(binding: Binding, schemas: Schemas) -> dict[str, Any]:
    rpc = binding.rpc
    text = comments().get(rpc.full_name, rpc.name)
    operation: dict[str, Any] = {
        "operationId": f"{rpc.containing_service.name}_{rpc.name}",
        "tags": [rpc.containing_service.name],
        "summary": text.split(". ")[0].rstrip("."),
        "description": text,
        "parameters": list(_parameters(binding, schemas)),
    }
    if binding.body:
        operation["requestBody"] = _request_body(binding, schemas)
    if rpc.client_streaming:
        content = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
        operation["requestBody"] = {"required": True, "description": "The file itself.", "content": content}
    operation["responses"] = {
        "200": {"description": "Done.", "content": _content(binding, schemas)},
        "default": {
            "description": "An error.",
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
        },
    }
    return operation


def _content(binding: Binding, schemas: Schemas) -> dict[str, Any]:
    schema = schemas.reference(binding.rpc.output_type)
    if not binding.rpc.server_streaming:
        return {"application/json": {"schema": schema}}
    return {"text/event-stream": {"schema": schema}, "application/x-ndjson": {"schema": schema}}


def _request_body(binding: Binding, schemas: Schemas) -> dict[str, Any]:
    kind = binding.rpc.input_type
    taken = _path_fields(binding)
    if binding.body == "*":
        schema = schemas.message(kind, taken) if taken else schemas.reference(kind)
    else:
        schema = schemas.field(kind.fields_by_name[binding.body])
    return {"required": bool(schema.get("required", not taken)), "content": {"application/json": {"schema": schema}}}


def _path_fields(binding: Binding) -> list[str]:
    return [variable.path for variable in binding.template.variables]


def _parameters(binding: Binding, schemas: Schemas) -> Iterator[dict[str, Any]]:
    taken = _path_fields(binding)
    for path in taken:
        *parents, name = path.split(".")
        kind = binding.input_type
        for parent in parents:
            part = kind.fields_by_name[parent].message_type
            assert part is not None
            kind = part
        schema = schemas.field(kind.fields_by_name[name])
        yield {"name": path, "in": "path", "required": True, "schema": schema}
    if binding.body != "*":
        yield from _query(binding.input_type, {*taken, binding.body}, "", schemas)
    if binding.rpc.server_streaming and "cursor" in binding.rpc.input_type.fields_by_name:
        yield _CURSOR_HEADER


def _query(kind: Descriptor, taken: set[str], prefix: str, schemas: Schemas) -> Iterator[dict[str, Any]]:
    for field in kind.fields:
        name = f"{prefix}{field.name}"
        part = field.message_type
        if name in taken:
            continue
        if is_map(field):
            schema = schemas.field(field)
            text = f"{schema.get('description', '')} Written as {name}.KEY=VALUE.".strip()
            yield {"name": name, "in": "query", "description": text, "schema": schema, "style": "deepObject"}
        elif part is None or is_well_known(part):
            schema = schemas.field(field)
            yield {"name": name, "in": "query", "description": schema.get("description", ""), "schema": schema}
        elif not field.is_repeated:
            yield from _query(part, taken, f"{name}.", schemas)
