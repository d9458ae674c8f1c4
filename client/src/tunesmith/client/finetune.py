"""Fine-tuning requests from plain values: parameters by name, as text or as numbers, every mistake listed at once."""

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from tunesmith.client.errors import InvalidArgument, Problem
from tunesmith.task.v1 import spec_pb2
from tunesmith.task.v1.spec_pb2 import DatasetSource, FinetuneSpec
from tunesmith.task.v1.task_service_pb2 import CreateTaskRequest

Value = str | int | float | bool | list[str] | tuple[str, ...]

_DATASET_ID = re.compile(r"[0-9a-z]{26}")
_HUB = re.compile(r"hf://(datasets/)?(?P<id>[^/]+/[^/]+)")
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_INTEGERS = (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_INT64)


@dataclass(frozen=True, slots=True)
class _Parameter:
    """A settable field: the way from a FinetuneSpec to the message that holds it, and its descriptor."""

    holder: Callable[[FinetuneSpec], Message]
    field: FieldDescriptor


def _scalars(name: str, prefix: str, holder: Callable[[FinetuneSpec], Message]) -> dict[str, _Parameter]:
    fields = [field for field in _MESSAGES[name].fields if field.message_type is None]
    return {prefix + field.name: _Parameter(holder, field) for field in fields}


_MESSAGES = spec_pb2.DESCRIPTOR.message_types_by_name
_PARAMETERS: dict[str, _Parameter] = {
    **_scalars("TrainingParameters", "", lambda spec: spec.training),
    **_scalars("LanguageModelParameters", "", lambda spec: spec.language_model),
    **_scalars("LoraParameters", "lora_", lambda spec: spec.language_model.lora),
    **_scalars("QuantizationParameters", "quantization_", lambda spec: spec.language_model.quantization),
    **_scalars("DeviceRequest", "", lambda spec: spec.devices),
    **{
        f"{field.name}_column": _Parameter(lambda spec: spec.dataset.columns, field)
        for field in _MESSAGES["DatasetColumns"].fields
    },
    "resume_from_checkpoint": _Parameter(
        lambda spec: spec, _MESSAGES["FinetuneSpec"].fields_by_name["resume_from_checkpoint"]
    ),
}


def parameter_names() -> list[str]:
    """Every name that finetune_request takes as a parameter."""
    return sorted(_PARAMETERS)


def finetune_request(
    name: str,
    base_model: str,
    dataset: str,
    parameters: Mapping[str, Value] | None = None,
    *,
    output_dir: str = "",
    validation: str = "",
    description: str = "",
    template_id: str = "",
) -> CreateTaskRequest:
    """The request for fine-tuning a language model.

    Paths that exist here are made absolute. parameters are named as in the protos' TrainingParameters and
    LanguageModelParameters, with lora_, quantization_ in front of those of their sub-messages and _column behind the
    names of DatasetColumns; what is left out comes from the template, else it takes the platform's default. Raises
    InvalidArgument with one problem for each name or value that is wrong.
    """
    request = CreateTaskRequest(name=name, description=description, template_id=template_id)
    spec = request.spec.finetune
    spec.base_model = _absolute(base_model)
    spec.dataset.CopyFrom(dataset_source(dataset))
    spec.dataset.validation_path = _absolute(validation)
    spec.output_dir = str(Path(output_dir).expanduser().absolute()) if output_dir else ""
    spec.training.SetInParent()
    spec.language_model.SetInParent()
    problems = [problem for key, value in (parameters or {}).items() if (problem := _set(spec, key, value))]
    if problems:
        raise InvalidArgument(f"{len(problems)} of the parameters cannot be used", problems=problems)
    return request


def dataset_source(text: str) -> DatasetSource:
    """A dataset as people name it: an address, a path, the id of an uploaded dataset, or hf://owner/name of the hub."""
    if hub := _HUB.fullmatch(text):
        return DatasetSource(hub_id=hub["id"])
    if "://" in text:
        return DatasetSource(uri=text)
    if _DATASET_ID.fullmatch(text) and not Path(text).exists():
        return DatasetSource(dataset_id=text)
    return DatasetSource(path=_absolute(text))


def _absolute(text: str) -> str:
    path = Path(text).expanduser()
    return str(path.absolute()) if text and path.exists() else text


def _set(spec: FinetuneSpec, name: str, value: Value) -> Problem | None:
    parameter = _PARAMETERS.get(name)
    if parameter is None:
        near = difflib.get_close_matches(name, _PARAMETERS, n=3, cutoff=0.6)
        advice = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(parameter_names())}"
        return Problem(name, f"there is no such parameter; {advice}")
    try:
        converted = _convert(parameter.field, value)
        holder = parameter.holder(spec)
        if parameter.field.is_repeated:
            getattr(holder, name.removeprefix("lora_")).extend(converted)
        else:
            setattr(holder, parameter.field.name, converted)
    except (ValueError, TypeError) as error:
        return Problem(name, str(error))
    return None


def _convert(field: FieldDescriptor, value: Value) -> object:
    if field.is_repeated:
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            raise ValueError(f"takes a list, for example a,b; not {value!r}")
        return [str(item).strip() for item in items]
    if field.enum_type is not None:
        return _enum(field.enum_type, str(value))
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return _truth(value)
    if field.cpp_type in _INTEGERS:
        return _integer(value)
    if field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return _number(value)
    return str(value)


def _enum(enum: EnumDescriptor, text: str) -> int:
    names = list(enum.values_by_name)
    prefix = names[0].removesuffix("UNSPECIFIED")
    short = {name.removeprefix(prefix).lower(): name for name in names[1:]}
    wanted = short.get(text.lower().removeprefix(prefix.lower()))
    if wanted is None:
        raise ValueError(f"takes {', '.join(short)}; not {text!r}")
    return enum.values_by_name[wanted].number


def _truth(value: Value) -> bool:
    text = str(value).lower()
    if text not in _TRUE + _FALSE:
        raise ValueError(f"takes true or false; not {value!r}")
    return text in _TRUE


def _integer(value: Value) -> int:
    number = _number(value)
    if not number.is_integer():
        raise ValueError(f"takes a whole number; not {value!r}")
    return int(number)


def _number(value: Value) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]  # what is not a number is refused below
    except (TypeError, ValueError):
        raise ValueError(f"takes a number; not {value!r}") from None
    if not math.isfinite(number) or isinstance(value, bool):
        raise ValueError(f"takes a finite number; not {value!r}")
    return number
