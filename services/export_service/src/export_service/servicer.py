"""ExportService: exports, their files, and stored models as they are."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from export_service.checks import SOURCE, ExportChecks
from export_service.exports import Exports
from export_service.formats import FORMATS, PACKAGES
from export_service.models import StoredModels
from servicekit.errors import NotFound, Problem
from servicekit.grpc_server import token_of
from servicekit.identity import current_principal
from tunesmith.export.v1 import export_service_pb2 as pb
from tunesmith.export.v1 import export_service_pb2_grpc
from tunesmith.task.v1 import task_service_pb2_grpc
from workerkit.sources import trusted_source
from workerkit.turns import Turns

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]


class ExportServicer(export_service_pb2_grpc.ExportServiceServicer):
    """Serves tunesmith.export.v1.ExportService. What reads a user's files waits for the user's turn."""

    def __init__(
        self,
        tasks: "task_service_pb2_grpc.TaskServiceAsyncStub",
        exports: Exports,
        models: StoredModels,
        checks: ExportChecks,
        turns: Turns,
    ) -> None:
        self._tasks = tasks
        self._exports = exports
        self._models = models
        self._checks = checks
        self._turns = turns

    async def CreateExport(self, request: pb.CreateExportRequest, context: "Context") -> pb.CreateExportResponse:
        created = await self._exports.create(request.name, request.spec, token_of(context))
        return pb.CreateExportResponse(export=created)

    async def GetExport(self, request: pb.GetExportRequest, context: "Context") -> pb.GetExportResponse:
        return pb.GetExportResponse(export=await self._exports.get(request.task_id, token_of(context)))

    async def ListExports(self, request: pb.ListExportsRequest, context: "Context") -> pb.ListExportsResponse:
        found, following = await self._exports.list(request.page_size, request.page_token, token_of(context))
        return pb.ListExportsResponse(exports=found, next_page_token=following)

    async def ListFormats(self, request: pb.ListFormatsRequest, context: "Context") -> pb.ListFormatsResponse:
        return pb.ListFormatsResponse(
            formats=[
                pb.Format(
                    format=item.format,
                    quantization=item.quantization,
                    bits_per_weight=item.bits_per_weight,
                    description=item.description,
                    available=True,
                )
                for item in FORMATS
            ],
            templates=[
                pb.PackageTemplate(
                    name=item.name,
                    description=item.description,
                    format=item.format,
                    quantizations=item.quantizations,
                    is_default=item is PACKAGES[0],
                )
                for item in PACKAGES
            ],
        )

    async def DownloadArtifact(
        self, request: pb.DownloadArtifactRequest, context: "Context"
    ) -> AsyncIterator[pb.DownloadArtifactResponse]:
        pieces = self._exports.download(request.task_id, request.name, request.offset, token_of(context))
        async for piece in pieces:
            yield piece

    async def DownloadModel(
        self, request: pb.DownloadModelRequest, context: "Context"
    ) -> AsyncIterator[pb.DownloadModelResponse]:
        pieces = self._models.download(
            request.task_id, request.checkpoint_step, adapter_only=request.adapter_only, token=token_of(context)
        )
        async for piece in pieces:
            yield pb.DownloadModelResponse(data=piece)

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
            return [Problem(SOURCE, error.message)]
        return (await self._checks.check(request.spec, source, token=token)).problems
