"""Evaluations: requests from plain values, and the calls about them."""

from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import quote

from google.protobuf.descriptor import MethodDescriptor

from tunesmith.client.errors import Problem
from tunesmith.client.exchange import Operation
from tunesmith.client.finetune import absolute_path, dataset_source
from tunesmith.client.values import Parameter, Value, number, refuse, scalars, set_each
from tunesmith.eval.v1 import eval_service_pb2
from tunesmith.eval.v1.eval_service_pb2 import (
    Evaluation,
    GetEvaluationRequest,
    GetEvaluationResponse,
    ListEvaluationsRequest,
    ListEvaluationsResponse,
    ListScoresRequest,
    ListScoresResponse,
    Score,
)
from tunesmith.task.v1 import spec_pb2
from tunesmith.task.v1.spec_pb2 import EvaluateSpec
from tunesmith.task.v1.task_service_pb2 import CreateTaskRequest

REPORTS = ("report.html", "report.json", "report.csv", "samples.csv")
WEIGHT = "weight_"
_SERVICE = eval_service_pb2.DESCRIPTOR.services_by_name["EvalService"]
_MESSAGES = spec_pb2.DESCRIPTOR.message_types_by_name
# Said by arguments of their own.
_ARGUMENTS = ("source_task_id", "checkpoint_steps", "include_base_model")


def _parameters() -> dict[str, Parameter]:
    own = scalars(_MESSAGES["EvaluateSpec"], "", lambda spec: spec)
    sampling = scalars(_MESSAGES["SamplingParameters"], "", lambda spec: spec.sampling)
    sampling["sampling_seed"] = sampling.pop("seed")
    return {**{name: own[name] for name in own if name not in _ARGUMENTS}, **sampling}


_PARAMETERS = _parameters()


def evaluation_parameters() -> list[str]:
    """Every name that evaluation_request takes as a parameter, but for the weights."""
    return sorted(_PARAMETERS)


def evaluation_request(
    name: str,
    task_id: str,
    checkpoints: Iterable[int] = (),
    parameters: Mapping[str, Value] | None = None,
    *,
    base_model: bool = False,
    dataset: str = "",
) -> CreateTaskRequest:
    """The request for scoring checkpoints of a task, all and the final model unless steps are named.

    base_model scores the untrained model too. Without a dataset the rows are used that the task has held out.
    parameters are named as in the protos' EvaluateSpec and SamplingParameters, whose seed is sampling_seed here;
    weight_NAME is the weight of a score. Raises InvalidArgument with one problem for each name or value that is wrong.
    """
    request = CreateTaskRequest(name=name)
    spec = request.spec.evaluate
    spec.source_task_id, spec.include_base_model = task_id, base_model
    spec.checkpoint_steps.extend(checkpoints)
    if dataset:
        spec.dataset.CopyFrom(dataset_source(dataset))
    values = dict(parameters or {})
    weights = {key.removeprefix(WEIGHT): values.pop(key) for key in list(values) if key.startswith(WEIGHT)}
    refuse([*set_each(spec, _PARAMETERS, values), *_set_weights(spec, weights)])
    spec.embedding_model = absolute_path(spec.embedding_model)
    return request


def _set_weights(spec: EvaluateSpec, weights: Mapping[str, Value]) -> list[Problem]:
    problems = []
    for name, value in weights.items():
        try:
            spec.weights[name] = number(value)
        except ValueError as error:
            problems.append(Problem(WEIGHT + name, str(error)))
    return problems


def get_evaluation(task_id: str) -> Operation[GetEvaluationResponse, Evaluation]:
    """Returns an evaluation with its scores and what it recommends. Raises NotFound."""
    request = GetEvaluationRequest(task_id=task_id)
    return Operation(_rpc("GetEvaluation"), request, GetEvaluationResponse, lambda response: response.evaluation)


def list_evaluations(
    request: ListEvaluationsRequest | None = None,
) -> Operation[ListEvaluationsResponse, ListEvaluationsResponse]:
    """Returns one page of the caller's evaluations, newest first, with the token of the next."""
    whole = request or ListEvaluationsRequest()
    return Operation(_rpc("ListEvaluations"), whole, ListEvaluationsResponse, lambda response: response)


def list_scores() -> Operation[ListScoresResponse, Sequence[Score]]:
    """Returns the scores that can be computed, with their meaning."""
    return Operation(_rpc("ListScores"), ListScoresRequest(), ListScoresResponse, lambda response: response.scores)


def report_path(task_id: str, name: str) -> str:
    """Where a file of an evaluation's report is."""
    return f"/v1/evaluations/{quote(task_id, safe='')}/report/{quote(name, safe='')}"


def _rpc(name: str) -> MethodDescriptor:
    return _SERVICE.methods_by_name[name]
