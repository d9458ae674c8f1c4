"""What a template must keep to: the contract's rules, for what it sets."""

import re

from google.protobuf.message import Message

from servicekit.errors import Problem
from servicekit.grpc_server import violations
from tunesmith.task.v1 import spec_pb2
from tunesmith.task.v1 import template_service_pb2 as pb

NAME_LENGTH = 200
SPEC_BYTES = 64 * 1024
TYPES = {
    spec_pb2.OBJECTIVE_UNSPECIFIED: "sft",
    spec_pb2.OBJECTIVE_SUPERVISED: "sft",
    spec_pb2.OBJECTIVE_PRETRAINING: "pretrain",
    spec_pb2.OBJECTIVE_CLASSIFICATION: "classification",
}

_SUBSCRIPT = re.compile(r"\[.*?\]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def template_problems(request: pb.CreateTemplateRequest) -> list[Problem]:
    """Everything that is wrong with a new template. What it leaves out is left to the task, so nothing is missing."""
    spec = request.spec
    broken = [problem for problem in violations(spec) if _is_set(spec, _SUBSCRIPT.sub("", problem.field))]
    found = [Problem(f"spec.{problem.field}", problem.message) for problem in broken]
    if len(request.name) > NAME_LENGTH or _CONTROL.search(request.name):
        found.append(Problem("name", f"has up to {NAME_LENGTH} letters and no control characters"))
    found += [
        Problem(name, "must not contain the NUL character")
        for name, text in (("type", request.type), ("description", request.description))
        if "\0" in text
    ]
    if spec.ByteSize() > SPEC_BYTES:
        found.append(Problem("spec", f"has {spec.ByteSize()} bytes; at most {SPEC_BYTES} can be kept"))
    if not request.type and not type_of(spec):
        found.append(Problem("type", "must be given: the parameters do not tell what kind of training they are for"))
    return found


def type_of(spec: spec_pb2.FinetuneSpec) -> str:
    """The kind of training that parameters are for, empty when they do not tell."""
    modality = spec.WhichOneof("modality") or ""
    return TYPES.get(spec.language_model.objective, "") if modality == "language_model" else modality


def _is_set(message: Message, path: str) -> bool:
    """Whether the field, or one of the oneof, at a path is set."""
    name, _, rest = path.partition(".")
    if name in message.DESCRIPTOR.oneofs_by_name:
        return message.WhichOneof(name) is not None
    if not any(field.name == name for field, _ in message.ListFields()):
        return False
    return not rest or not isinstance(getattr(message, name), Message) or _is_set(getattr(message, name), rest)
