"""ParameterService over gRPC: the platform's table of parameters, with the defaults and ranges of one surface."""

from typing import Any

from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Value

from parameterkit import SURFACES, Limits, Parameter, effective_defaults, ranges, required, shown
from parameterkit.parameter import OBJECTIVES
from servicekit.errors import InvalidArgument, Problem
from tunesmith.task.v1 import parameter_service_pb2 as pb
from tunesmith.task.v1 import parameter_service_pb2_grpc


class ParameterServicer(parameter_service_pb2_grpc.ParameterServiceServicer):
    """What forms are drawn from."""

    async def ListParameters(self, request: pb.ListParametersRequest, context: Any) -> pb.ListParametersResponse:
        return pb.ListParametersResponse(parameters=listed(request.surface or "native", request.objective))


def listed(surface: str, objective: str) -> list[pb.Parameter]:
    """The parameters of a surface for a kind of training ("sft", "pretrain", "classification"; empty is all).

    Raises InvalidArgument for a surface or a kind that does not exist.
    """
    known = {"surface": (surface, tuple(SURFACES)), "objective": (objective, ("", *OBJECTIVES.values()))}
    problems = [
        Problem(name, f"{word!r} is not one of {', '.join(filter(None, words))}")
        for name, (word, words) in known.items()
        if word not in words
    ]
    if problems:
        raise InvalidArgument(problems=problems)
    values, limits, demanded = effective_defaults(surface, objective), ranges(surface), required(surface)
    return [
        parameter_message(row, values.get(row.name), limits[row.name], row.name in demanded)
        for row in shown(surface, objective)
    ]


def parameter_message(row: Parameter, value: object, limits: Limits, demanded: bool) -> pb.Parameter:
    """A row as the API shows it, with the default and the limits of one surface."""
    above, below = limits.above is not None, limits.below is not None
    return pb.Parameter(
        name=row.name,
        path=row.path,
        aliases=row.aliases,
        category=row.category,
        fold=row.fold,
        label_en=row.label_en,
        label_zh=row.label_zh,
        type=row.type,
        default_value=None if value is None else ParseDict(value, Value()),  # type: ignore[arg-type]  # takes scalars and lists too
        minimum=limits.above if above else limits.at_least,
        minimum_excluded=above,
        maximum=limits.below if below else limits.at_most,
        maximum_excluded=below,
        choices=limits.choices or row.choices,
        advice_en=row.advice_en,
        advice_zh=row.advice_zh,
        required=demanded,
        objectives=row.objectives,
        methods=row.methods,
        description_en=row.description_en,
        description_zh=row.description_zh,
        switch=row.switch,
    )
