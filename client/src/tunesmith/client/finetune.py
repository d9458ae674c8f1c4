"""Fine-tuning requests from plain values: parameters by name, as text or as numbers, every mistake listed at once."""

import re
from collections.abc import Mapping
from pathlib import Path

from tunesmith.client.values import Parameter, Value, scalars, set_all
from tunesmith.task.v1 import spec_pb2
from tunesmith.task.v1.spec_pb2 import DatasetSource
from tunesmith.task.v1.task_service_pb2 import CreateTaskRequest

_DATASET_ID = re.compile(r"[0-9a-z]{26}")
_HUB = re.compile(r"hf://(datasets/)?(?P<id>[^/]+/[^/]+)")
_MESSAGES = spec_pb2.DESCRIPTOR.message_types_by_name
_PARAMETERS: dict[str, Parameter] = {
    **scalars(_MESSAGES["TrainingParameters"], "", lambda spec: spec.training),
    **scalars(_MESSAGES["LanguageModelParameters"], "", lambda spec: spec.language_model),
    **scalars(_MESSAGES["LoraParameters"], "lora_", lambda spec: spec.language_model.lora),
    **scalars(_MESSAGES["QuantizationParameters"], "quantization_", lambda spec: spec.language_model.quantization),
    **scalars(_MESSAGES["DeviceRequest"], "", lambda spec: spec.devices),
    **{
        f"{field.name}_column": Parameter(lambda spec: spec.dataset.columns, field)
        for field in _MESSAGES["DatasetColumns"].fields
    },
    "resume_from_checkpoint": Parameter(
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
    spec.base_model = absolute_path(base_model)
    spec.dataset.CopyFrom(dataset_source(dataset))
    spec.dataset.validation_path = absolute_path(validation)
    spec.output_dir = str(Path(output_dir).expanduser().absolute()) if output_dir else ""
    spec.training.SetInParent()
    spec.language_model.SetInParent()
    set_all(spec, _PARAMETERS, parameters or {})
    return request


def dataset_source(text: str) -> DatasetSource:
    """A dataset as people name it: an address, a path, the id of an uploaded dataset, or hf://owner/name of the hub."""
    if hub := _HUB.fullmatch(text):
        return DatasetSource(hub_id=hub["id"])
    if "://" in text:
        return DatasetSource(uri=text)
    if _DATASET_ID.fullmatch(text) and not Path(text).exists():
        return DatasetSource(dataset_id=text)
    return DatasetSource(path=absolute_path(text))


def absolute_path(text: str) -> str:
    """A path that exists here made absolute; anything else as it is."""
    path = Path(text).expanduser()
    return str(path.absolute()) if text and path.exists() else text
