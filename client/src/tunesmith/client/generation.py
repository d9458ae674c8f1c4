"""Answers of a model, token by token."""

from collections.abc import Iterable, Mapping, Sequence

from google.protobuf.descriptor import FieldDescriptor

from tunesmith.client.exchange import Operation
from tunesmith.client.values import Parameter, Value, set_all
from tunesmith.eval.v1 import eval_service_pb2
from tunesmith.eval.v1.eval_service_pb2 import (
    GenerateRequest,
    GenerateResponse,
    ListLoadedModelsRequest,
    ListLoadedModelsResponse,
    LoadedModel,
    Message,
)

_SERVICE = eval_service_pb2.DESCRIPTOR.services_by_name["EvalService"]
_NAMES = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "seed",
    "stop",
)


def _field(name: str) -> FieldDescriptor:
    field: FieldDescriptor = GenerateRequest.DESCRIPTOR.fields_by_name[name]
    return field


_PARAMETERS = {name: Parameter(lambda request: request, _field(name)) for name in _NAMES}


def generation_parameters() -> list[str]:
    """Every name that generation_request takes as a parameter."""
    return list(_NAMES)


def generation_request(
    task_id: str,
    messages: str | Iterable[Message],
    parameters: Mapping[str, Value] | None = None,
    *,
    checkpoint_step: int = 0,
    base_model: bool = False,
    artifact: str = "",
    system: str = "",
) -> GenerateRequest:
    """The request for an answer to a conversation, or to one text, from a task's final model or one checkpoint.

    base_model asks the model before training, artifact a GGUF file of an export. parameters are named as in the protos'
    GenerateRequest. Raises InvalidArgument with one problem for each name or value that is wrong.
    """
    request = GenerateRequest(
        task_id=task_id, checkpoint_step=checkpoint_step, base_model=base_model, artifact=artifact
    )
    if system:
        request.messages.add(role="system", content=system)
    request.messages.extend([Message(role="user", content=messages)] if isinstance(messages, str) else messages)
    set_all(request, _PARAMETERS, parameters or {})
    return request


def generate(request: GenerateRequest) -> Operation[GenerateResponse, GenerateResponse]:
    """Yields the answer in pieces; before them how far the loading of the model is, and with the last why it ended.

    A connection that breaks is not opened again: the answer would begin anew. Leaving the stream stops the model.
    """
    method = _SERVICE.methods_by_name["Generate"]
    return Operation(method, request, GenerateResponse, lambda response: response, repeatable=False)


def loaded_models() -> Operation[ListLoadedModelsResponse, Sequence[LoadedModel]]:
    """Returns the models that are in memory for answers, last used first."""
    method = _SERVICE.methods_by_name["ListLoadedModels"]
    return Operation(method, ListLoadedModelsRequest(), ListLoadedModelsResponse, lambda response: response.models)
