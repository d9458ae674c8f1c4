"""EvalService: says which scores there are, and refuses plainly what this version does not do."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from eval_service.scores import SCORES
from servicekit.errors import Unimplemented
from tunesmith.eval.v1 import eval_service_pb2, eval_service_pb2_grpc

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]


class EvalServicer(eval_service_pb2_grpc.EvalServiceServicer):
    """Serves tunesmith.eval.v1.EvalService. Raises Unimplemented for the work that a later version brings."""

    async def CreateEvaluation(
        self, request: eval_service_pb2.CreateEvaluationRequest, context: "Context"
    ) -> eval_service_pb2.CreateEvaluationResponse:
        raise Unimplemented(
            "this version does not evaluate checkpoints yet; a later one scores them against the base model, "
            "recommends the best and writes a report. ListScores tells which scores that will be"
        )

    async def GetEvaluation(
        self, request: eval_service_pb2.GetEvaluationRequest, context: "Context"
    ) -> eval_service_pb2.GetEvaluationResponse:
        raise Unimplemented("this version does not evaluate checkpoints yet, so there is no evaluation to return")

    async def ListEvaluations(
        self, request: eval_service_pb2.ListEvaluationsRequest, context: "Context"
    ) -> eval_service_pb2.ListEvaluationsResponse:
        raise Unimplemented("this version does not evaluate checkpoints yet, so there are no evaluations to list")

    async def ListScores(
        self, request: eval_service_pb2.ListScoresRequest, context: "Context"
    ) -> eval_service_pb2.ListScoresResponse:
        return eval_service_pb2.ListScoresResponse(
            scores=[
                eval_service_pb2.Score(
                    name=score.name,
                    description=score.description,
                    higher_is_better=score.higher_is_better,
                    available=False,
                )
                for score in SCORES
            ]
        )

    async def Generate(
        self, request: eval_service_pb2.GenerateRequest, context: "Context"
    ) -> AsyncIterator[eval_service_pb2.GenerateResponse]:
        raise Unimplemented(
            "this version does not generate text from checkpoints yet; a later one streams it token by token. "
            "Until then, load the finished model from the task's output directory"
        )
        yield  # a streaming call is an async generator
