"""Turns an RPC and its request message into the HTTP call that its google.api.http annotation describes."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from google.api import annotations_pb2
from google.protobuf import json_format
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

_VARIABLE = re.compile(r"\{([a-z0-9_.]+)(?:=[^}]*)?\}")
_VERBS = ("get", "post", "put", "patch", "delete")


@dataclass(frozen=True, slots=True)
class HttpCall:
    """An HTTP request without its host: path with variables filled in, query pairs in order, JSON body or None."""

    verb: str
    path: str
    query: tuple[tuple[str, str], ...]
    body: bytes | None


def transcode(method: MethodDescriptor, request: Message) -> HttpCall:
    """The HTTP call of an RPC. Raises ValueError when the RPC has no HTTP form or a path variable is empty."""
    rule = method.GetOptions().Extensions[annotations_pb2.http]
    verb = rule.WhichOneof("pattern")
    if verb not in _VERBS:
        raise ValueError(f"{method.full_name} has no HTTP form")
    fields = json_format.MessageToDict(request, preserving_proto_field_name=True)
    path = _VARIABLE.sub(lambda match: quote(_take(fields, match[1]), safe=""), getattr(rule, verb))
    if rule.body == "*":
        return HttpCall(verb.upper(), path, (), json.dumps(fields).encode())
    body = json.dumps(fields.pop(rule.body, {})).encode() if rule.body else None
    return HttpCall(verb.upper(), path, tuple(_query("", fields)), body)


def _take(fields: dict[str, Any], variable: str) -> str:
    *parents, name = variable.split(".")
    for parent in parents:
        fields = fields.get(parent, {})
    value = fields.pop(name, "")
    if value == "":
        raise ValueError(f"{variable} must not be empty")
    return str(value)


def _query(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _query(f"{prefix}.{name}" if prefix else name, item)
    elif isinstance(value, list):
        for item in value:
            yield from _query(prefix, item)
    else:
        yield prefix, str(value).lower() if isinstance(value, bool) else str(value)
