"""What of a broken request can be checked all the same, so that every problem is told at once."""

import re

from google.protobuf.message import Message

from servicekit.errors import Problem
from servicekit.grpc_server import violations
from tunesmith.task.v1 import spec_pb2, task_service_pb2

_SUBSCRIPT = re.compile(r"\[.*?\]")


def without_violations(
    request: task_service_pb2.CreateTaskRequest, problems: list[Problem]
) -> spec_pb2.TaskSpec | None:
    """The spec without the fields that break a rule, None when what is left cannot be checked."""
    rest = task_service_pb2.CreateTaskRequest()
    rest.CopyFrom(request)
    for problem in problems:
        _clear(rest, _SUBSCRIPT.sub("", problem.field).split("."))
    return rest.spec if rest.HasField("spec") and not violations(rest.spec) else None


def _clear(message: Message, path: list[str]) -> None:
    name, *rest = path
    if name not in message.DESCRIPTOR.fields_by_name:
        return
    if rest and message.HasField(name):
        _clear(getattr(message, name), rest)
    elif not rest:
        message.ClearField(name)
