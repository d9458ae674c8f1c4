"""A row of the table: what a parameter is called, what it means, and which field of a FinetuneSpec it sets."""

import dataclasses
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor

from parameterkit.limits import Limits, limits
from tunesmith.task.v1 import spec_pb2

CATEGORIES = ("data", "training", "lora", "quantization", "optimization", "logging", "general")
FOLDS = ("", "optional", "advanced", "optimization", "save", "eval")
OBJECTIVES = {"supervised": "sft", "pretraining": "pretrain", "classification": "classification"}

_TYPES = {
    FieldDescriptor.CPPTYPE_BOOL: "boolean",
    FieldDescriptor.CPPTYPE_STRING: "text",
    FieldDescriptor.CPPTYPE_ENUM: "choice",
    FieldDescriptor.CPPTYPE_DOUBLE: "number",
}
_SPEC = spec_pb2.FinetuneSpec.DESCRIPTOR


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A parameter. Type, range and English description are those of its field, where nothing else is said here.

    path is the field in a FinetuneSpec, for example "training.learning_rate"; also are fields that the same value may
    set instead. A switch sets the field of another row in words of its own, for example use_4bit. words are other
    spellings of choices, options the choices of a text that the contract leaves open, default the platform's own value.
    """

    name: str
    path: str
    category: str
    label_en: str
    label_zh: str
    description_zh: str
    meaning: str = ""
    default: object = None
    aliases: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    fold: str = ""
    kind: str = ""
    options: tuple[str, ...] = ()
    words: Mapping[str, str] = dataclasses.field(default_factory=dict)
    advice_en: str = ""
    advice_zh: str = ""
    required: bool = False
    switch: bool = False
    objectives: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()

    @property
    def field(self) -> FieldDescriptor:
        """The field that it sets."""
        return field_at(self.path)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that it goes by."""
        return (self.name, *self.aliases)

    @property
    def type(self) -> str:
        """Kind of value: "integer", "number", "boolean", "text", "choice", "list" or "path"."""
        if self.kind:
            return self.kind
        if self.options or self.limits.choices:
            return "choice"
        return "list" if self.field.is_repeated else _TYPES.get(self.field.cpp_type, "integer")

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that a choice takes."""
        if self.options:
            return self.options
        enum = self.field.enum_type
        return tuple(enum_words(enum)) if enum is not None and not self.switch else self.limits.choices

    @property
    def limits(self) -> Limits:
        """What the contract demands of a value; nothing of a switch."""
        return Limits() if self.switch else limits(self.field)

    @property
    def minimum(self) -> float | None:
        """Smallest value, or the bound above which it must lie."""
        return self.limits.at_least if self.limits.above is None else self.limits.above

    @property
    def minimum_excluded(self) -> bool:
        """minimum itself is not allowed."""
        return self.limits.above is not None

    @property
    def maximum(self) -> float | None:
        """Largest value, or the bound below which it must lie."""
        return self.limits.at_most if self.limits.below is None else self.limits.below

    @property
    def maximum_excluded(self) -> bool:
        """maximum itself is not allowed."""
        return self.limits.below is not None

    @property
    def description_en(self) -> str:
        """What it means; the contract's comment, without the platform's default."""
        return self.meaning or _comments().get(self.field.full_name, "").partition(" Default")[0].replace("\n", " ")

    def concerns(self, objective: str) -> bool:
        """Whether a kind of training ("sft", "pretrain", "classification"; empty is any) has it."""
        return not objective or not self.objectives or objective in self.objectives


@cache
def field_at(path: str) -> FieldDescriptor:
    """The field of a FinetuneSpec at a path such as "training.learning_rate"."""
    kind = _SPEC
    *parents, name = path.split(".")
    for parent in parents:
        part = kind.fields_by_name[parent].message_type
        assert part is not None
        kind = part
    return kind.fields_by_name[name]


@cache
def enum_words(enum: EnumDescriptor) -> Mapping[str, int]:
    """Numbers of an enum by lower-case words without the type's prefix, without the unspecified one."""
    prefix = enum.values[0].name.removesuffix("UNSPECIFIED")
    return {value.name.removeprefix(prefix).lower(): value.number for value in enum.values[1:]}


@cache
def _comments() -> Mapping[str, str]:
    return dict(json.loads((files("tunesmith") / "comments.json").read_text(encoding="utf-8")))
