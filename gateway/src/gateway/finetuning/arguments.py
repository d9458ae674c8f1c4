"""The parameters of this surface: names, aliases and defaults in one table, and where each goes in the spec."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from gateway.native.scalars import from_json, shown
from parameterkit.limits import limits
from tunesmith.task.v1 import spec_pb2

_SPEC = spec_pb2.FinetuneSpec.DESCRIPTOR
_INTEGERS = (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_INT64)

# What this surface fills in where its caller says nothing. Other surfaces have tables of their own.
DEFAULTS: dict[str, Any] = {
    "num_train_epochs": 3,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "learning_rate": 2e-4,
    "warmup_steps": 100,
    "logging_steps": 10,
    "save_steps": 500,
    "max_seq_length": 512,
    # The document recommends LoRA. No modules are named, because their names differ between the families that it
    # supports (q_proj in LLaMA and Qwen, query_key_value in ChatGLM): every linear layer of the blocks gets an adapter.
    "method": "lora",
    "lora_r": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
}


@dataclass(frozen=True, slots=True)
class Argument:
    """A parameter: its name, its path in a FinetuneSpec, and other names that mean the same."""

    name: str
    path: str
    aliases: tuple[str, ...] = ()

    @property
    def field(self) -> FieldDescriptor:
        """The field that it sets."""
        kind: Descriptor = _SPEC
        *parents, name = self.path.split(".")
        for parent in parents:
            part = kind.fields_by_name[parent].message_type
            assert part is not None
            kind = part
        return kind.fields_by_name[name]

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that it goes by."""
        return (self.name, *self.aliases)


def _of(message: str, *names: str) -> list[Argument]:
    return [Argument(name, f"{message}.{name}") for name in names]


_ALIASED = {
    "num_train_epochs": ("num_epochs", "epochs"),
    "per_device_train_batch_size": ("batch_size",),
    "optim": ("optimizer",),
}
_TRAINING = spec_pb2.TrainingParameters.DESCRIPTOR.fields
ARGUMENTS: tuple[Argument, ...] = (
    *(Argument(field.name, f"training.{field.name}", _ALIASED.get(field.name, ())) for field in _TRAINING),
    Argument("method", "language_model.method"),
    Argument("max_seq_length", "language_model.max_seq_length", ("max_length",)),
    *_of("language_model", "packing", "max_samples", "eval_ratio"),
    Argument("lora_r", "language_model.lora.r", ("lora_rank",)),
    Argument("lora_alpha", "language_model.lora.alpha"),
    Argument("lora_dropout", "language_model.lora.dropout"),
    Argument("lora_target_modules", "language_model.lora.target_modules", ("target_modules",)),
    Argument("lora_bias", "language_model.lora.bias"),
    Argument("bnb_4bit_quant_type", "language_model.quantization.type"),
    Argument("bnb_4bit_compute_dtype", "language_model.quantization.compute_dtype"),
    Argument("bnb_4bit_use_double_quant", "language_model.quantization.double_quant", ("use_nested_quant",)),
)
BY_NAME = {name: argument for argument in ARGUMENTS for name in argument.names}

# Switches that choose the method rather than set a field.
USE_4BIT, USE_8BIT, QUANTIZATION = "use_4bit", "use_8bit", "quantization"
SWITCHES: dict[str, str] = {
    USE_4BIT: USE_4BIT,
    "load_in_4bit": USE_4BIT,
    USE_8BIT: USE_8BIT,
    "load_in_8bit": USE_8BIT,
    QUANTIZATION: QUANTIZATION,
}
QUANTIZATIONS = ("none", "nf4", "fp4", "int4", "int8")
KNOWN_NAMES = (*BY_NAME, *SWITCHES)


def parse(argument: Argument, value: Any) -> Any:
    """The value of an argument as its field takes it. Raises ValueError with what was expected, in Chinese."""
    field = argument.field
    if field.is_repeated:
        return _texts(value)
    if field.enum_type is not None:
        return _choice(field, value)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return truth(value)
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return _text(field, value)
    return _number(field, value)


def truth(value: Any) -> bool:
    """A boolean."""
    if not isinstance(value, bool):
        raise ValueError(f"应为 true 或 false，收到 {received(value)}")
    return value


def choice(value: Any, choices: tuple[str, ...]) -> str:
    """One of several words, in any case."""
    word = value.lower() if isinstance(value, str) else ""
    if word not in choices:
        raise ValueError(f"应为 {'、'.join(choices)} 之一，收到 {received(value)}")
    return word


def near(name: str, known: Iterable[str]) -> str:
    """A question whether a similar known name was meant; empty when there is none."""
    found = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"，是否想写 {found[0]}？" if found else ""


def received(value: Any) -> str:
    """A value as a message shows it."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
    if isinstance(value, list | dict):
        return "数组" if isinstance(value, list) else "对象"
    return shown(value)


def _number(field: FieldDescriptor, value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"应为数字，收到 {received(value)}")
    bounds = limits(field)
    if field.cpp_type in _INTEGERS and isinstance(value, float) and not value.is_integer():
        raise ValueError(f"应为整数，收到 {received(value)}")
    if not bounds.admit(value):
        raise ValueError(f"应在 {bounds.interval()} 范围内，收到 {received(value)}")
    try:
        number: int | float = from_json(field, value)
    except ValueError:
        raise ValueError(f"数值过大，收到 {received(value)}") from None
    return number


def _text(field: FieldDescriptor, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"应为字符串，收到 {received(value)}")
    choices = limits(field).choices
    if choices:
        return choice(value, choices)
    if not value.strip():
        raise ValueError("不能为空")
    return value


def _choice(field: FieldDescriptor, value: Any) -> int:
    assert field.enum_type is not None
    prefix: str = field.enum_type.values[0].name.removesuffix("UNSPECIFIED")
    numbers = {item.name.removeprefix(prefix).lower(): item.number for item in field.enum_type.values[1:]}
    return numbers[choice(value, tuple(numbers))]


def _texts(value: Any) -> list[str]:
    items = [item.strip() for item in value.split(",")] if isinstance(value, str) else value
    if not (isinstance(items, list) and all(isinstance(item, str) and item for item in items)):
        raise ValueError(f"应为字符串数组，收到 {received(value)}")
    return items
