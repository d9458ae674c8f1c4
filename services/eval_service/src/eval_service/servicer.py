"""EvalService: evaluations, their scores and reports, and live generation."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from eval_service.checks import EvaluationChecks
from eval_service.evaluations import Evaluations
from eval_service.generation.generation import Generation
from eval_service.generation.servicer import GenerationServicer
from eval_service.scores import SCORES
from servicekit.errors import NotFound, Problem
from servicekit.grpc_server import token_of
from servicekit.identity import current_principal
from tunesmith.eval.v1 import eval_service_pb2 as pb
from tunesmith.task.v1 import task_service_pb2_grpc
from workerkit.sources import trusted_source
from workerkit.turns import Turns

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]


class EvalServicer(GenerationServicer):
    """Serves tunesmith.eval.v1.EvalService. What reads a user's files waits for the user's turn."""

    def __init__(
        self,
        tasks: "task_service_pb2_grpc.TaskServiceAsyncStub",
        evaluations: Evaluations,
        checks: EvaluationChecks,
        generation: Generation,
        turns: Turns,
    ) -> None:
        super().__init__(generation)
        self._tasks = tasks
        self._evaluations = evaluations
        self._checks = checks
        self._turns = turns

    async def CreateEvaluation(
        self, request: pb.CreateEvaluationRequest, context: "Context"
    ) -> pb.CreateEvaluationResponse:
        created = await self._evaluations.create(request.name, request.spec, token_of(context))
        return pb.CreateEvaluationResponse(evaluation=created)

    async def GetEvaluation(self, request: pb.GetEvaluationRequest, context: "Context") -> pb.GetEvaluationResponse:
        found = await self._evaluations.get(request.task_id, token_of(context))
        return pb.GetEvaluationResponse(evaluation=found)

    async def ListEvaluations(
        self, request: pb.ListEvaluationsRequest, context: "Context"
    ) -> pb.ListEvaluationsResponse:
        found, following = await self._evaluations.list(request.page_size, request.page_token, token_of(context))
        return pb.ListEvaluationsResponse(evaluations=found, next_page_token=following)

    async def ListScores(self, request: pb.ListScoresRequest, context: "Context") -> pb.ListScoresResponse:
        scores = [
            pb.Score(
                name=score.name,
                description=score.description,
                higher_is_better=score.higher_is_better,
                available=True,
            )
            for score in SCORES
        ]
        return pb.ListScoresResponse(scores=scores)

    async def DownloadReport(
        self, request: pb.DownloadReportRequest, context: "Context"
    ) -> AsyncIterator[pb.DownloadReportResponse]:
        pieces = self._evaluations.download(request.task_id, request.name, request.offset, token_of(context))
        async for piece in pieces:
            yield piece

    async def CheckSpec(self, request: pb.CheckSpecRequest, context: "Context") -> pb.CheckSpecResponse:
        async with self._turns.of(current_principal().user):
            found = await self._problems(request, token_of(context))
        problems = [pb.SpecProblem(field=item.field, message=item.message) for item in found]
        return pb.CheckSpecResponse(problems=problems)

    async def _problems(self, request: pb.CheckSpecRequest, token: str) -> list[Problem]:
        """What is wrong with a specification."""
        try:
            source = await trusted_source(self._tasks, request.source, request.spec.source_task_id, token)
        except NotFound as error:
            return [Problem("evaluate.source_task_id", error.message)]
        return await self._checks.at_submit(request.spec, source, self._turns.run, token=token)
