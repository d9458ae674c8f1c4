"""The RPCs of live generation."""

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from eval_service.generation.generation import Generation
from servicekit.grpc_server import token_of
from servicekit.identity import current_principal
from tunesmith.eval.v1 import eval_service_pb2 as pb
from tunesmith.eval.v1 import eval_service_pb2_grpc

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]


class GenerationServicer(eval_service_pb2_grpc.EvalServiceServicer):
    """Serves what tunesmith.eval.v1.EvalService says of generation."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation

    async def Generate(self, request: pb.GenerateRequest, context: "Context") -> AsyncIterator[pb.GenerateResponse]:
        answer = self._generation.generate(request, current_principal(), token_of(context))
        async with contextlib.aclosing(answer) as responses:
            async for response in responses:
                yield response

    async def ListLoadedModels(
        self, request: pb.ListLoadedModelsRequest, context: "Context"
    ) -> pb.ListLoadedModelsResponse:
        return pb.ListLoadedModelsResponse(models=self._generation.loaded(current_principal()))
