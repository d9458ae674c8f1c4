"""Fills what a task's specification leaves out from a template, after the user's values and before all defaults."""

from collections.abc import Collection, Iterable

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from parameterkit import rules
from servicekit.errors import Problem
from tunesmith.task.v1 import spec_pb2

ROOT = "finetune"
_QUANTIZATION = f"{ROOT}.language_model.quantization."


def template_misfits(template: spec_pb2.FinetuneSpec, spec: spec_pb2.TaskSpec, template_id: str) -> list[Problem]:
    """Why a task cannot take its parameters from a template."""
    if spec.WhichOneof("work") not in (None, "finetune"):
        return [Problem("template_id", "templates are for training; this task does something else")]
    theirs, ours = template.WhichOneof("modality"), spec.finetune.WhichOneof("modality")
    if theirs and ours and theirs != ours:
        message = f"{template_id} is for {theirs.replace('_', ' ')}s, but the task trains an {ours.replace('_', ' ')}"
        return [Problem("template_id", message.replace(" an l", " a l").replace(" an t", " a t"))]
    return []


def apply_template(
    template: spec_pb2.FinetuneSpec, spec: spec_pb2.FinetuneSpec, default_fields: Iterable[str]
) -> set[str]:
    """Takes over, in place, what spec does not say; the paths of the values taken.

    Values below a path in default_fields are a surface's own defaults, so the template's replace them.
    """
    rules.settle_method(spec)
    given = spec.language_model.HasField("quantization")
    merging = _Merging(tuple(default_fields))
    merging.merge(template, spec, f"{ROOT}.")
    if not given and spec.language_model.method in (spec_pb2.METHOD_FULL, spec_pb2.METHOD_LORA):
        spec.language_model.ClearField("quantization")  # the template's, whose method was not wanted
        merging.taken = {path for path in merging.taken if not path.startswith(_QUANTIZATION)}
    return merging.taken


class _Merging:
    def __init__(self, default_fields: Collection[str]) -> None:
        self._default_fields = default_fields
        self.taken: set[str] = set()

    def merge(self, template: Message, spec: Message, prefix: str) -> None:
        """Merges a message and those in it."""
        decided = self._decided(spec, prefix)
        for field, value in template.ListFields():
            if field.name in decided or _excluded(field, spec):
                continue
            path = f"{prefix}{field.name}"
            if isinstance(value, Message):
                target = getattr(spec, field.name)
                target.SetInParent()
                self.merge(value, target, f"{path}.")
            elif not _is_set(spec, field.name) or self._is_default(path):
                self._take(field.name, value, spec, prefix)

    def _take(self, name: str, value: object, spec: Message, prefix: str) -> None:
        """Sets a value; a surface's defaults that would decide in its place go."""
        for group in rules.ALTERNATIVES:
            for other in group - {name} if name in group else ():
                path = f"{prefix}{other}"
                if self._is_default(path) and path not in self.taken:
                    spec.ClearField(other)
        spec.ClearField(name)
        if isinstance(value, bool | int | float | str | bytes):
            setattr(spec, name, value)
        else:
            getattr(spec, name).extend(value)
        self.taken.add(f"{prefix}{name}")

    def _decided(self, spec: Message, prefix: str) -> frozenset[str]:
        """Names whose group the user has decided about: a value above zero does."""
        names = {
            field.name
            for field, value in spec.ListFields()
            if isinstance(value, bool | int | float) and value > 0 and not self._is_default(f"{prefix}{field.name}")
        }
        return frozenset().union(*(group for group in rules.ALTERNATIVES if group & names))

    def _is_default(self, path: str) -> bool:
        return any(path == prefix or path.startswith(f"{prefix}.") for prefix in self._default_fields)


def _is_set(message: Message, name: str) -> bool:
    return any(field.name == name for field, _ in message.ListFields())


def _excluded(field: FieldDescriptor, spec: Message) -> bool:
    """Whether the user has chosen another field of a oneof, such as another source of data."""
    oneof = field.containing_oneof
    if oneof is None or oneof.name.startswith("_"):  # that of an optional field
        return False
    chosen = spec.WhichOneof(oneof.name)
    return chosen is not None and chosen != field.name
