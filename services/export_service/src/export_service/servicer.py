"""ExportService: says which formats there are, and refuses plainly what this version does not do."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from export_service.formats import FORMATS
from servicekit.errors import Unimplemented
from tunesmith.export.v1 import export_service_pb2, export_service_pb2_grpc

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]


class ExportServicer(export_service_pb2_grpc.ExportServiceServicer):
    """Serves tunesmith.export.v1.ExportService. Raises Unimplemented for the work that a later version brings."""

    async def CreateExport(
        self, request: export_service_pb2.CreateExportRequest, context: "Context"
    ) -> export_service_pb2.CreateExportResponse:
        raise Unimplemented(
            "this version does not export models yet; a later one merges, converts and quantizes them, and checks "
            "the result. ListFormats tells which forms that will be. Until then, the finished model lies in the "
            "task's output directory in Hugging Face form"
        )

    async def GetExport(
        self, request: export_service_pb2.GetExportRequest, context: "Context"
    ) -> export_service_pb2.GetExportResponse:
        raise Unimplemented("this version does not export models yet, so there is no export to return")

    async def ListExports(
        self, request: export_service_pb2.ListExportsRequest, context: "Context"
    ) -> export_service_pb2.ListExportsResponse:
        raise Unimplemented("this version does not export models yet, so there are no exports to list")

    async def ListFormats(
        self, request: export_service_pb2.ListFormatsRequest, context: "Context"
    ) -> export_service_pb2.ListFormatsResponse:
        return export_service_pb2.ListFormatsResponse(
            formats=[
                export_service_pb2.Format(
                    format=item.format,
                    quantization=item.quantization,
                    bits_per_weight=item.bits_per_weight,
                    description=item.description,
                    available=False,
                )
                for item in FORMATS
            ]
        )

    async def DownloadArtifact(
        self, request: export_service_pb2.DownloadArtifactRequest, context: "Context"
    ) -> AsyncIterator[export_service_pb2.DownloadArtifactResponse]:
        raise Unimplemented("this version does not export models yet, so there is no artifact to download")
        yield  # a streaming call is an async generator
