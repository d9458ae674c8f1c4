"""Evaluation and export services that answer from memory."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import Message

from servicekit.errors import NotFound, TunesmithError, Unimplemented
from tunesmith.eval.v1 import eval_service_pb2, eval_service_pb2_grpc
from tunesmith.export.v1 import export_service_pb2, export_service_pb2_grpc

PIECE = 1000


@dataclass
class EvalService(eval_service_pb2_grpc.EvalServiceServicer):
    """Says the words of a prompt again; after the last one it waits while hold is set. reports are files by name."""

    reports: dict[str, bytes] = field(default_factory=dict)
    requests: list[Message] = field(default_factory=list)
    hold: bool = False
    error: TunesmithError | None = None
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    def __hash__(self) -> int:
        return id(self)

    async def Generate(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        if self.error is not None:
            raise self.error
        try:
            for word in request.messages[-1].content.split():
                yield eval_service_pb2.GenerateResponse(text=word)
            if self.hold:
                await asyncio.Event().wait()
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise
        words = len(request.messages[-1].content.split())
        usage = eval_service_pb2.TokenUsage(prompt_tokens=len(request.messages), completion_tokens=words)
        yield eval_service_pb2.GenerateResponse(finish_reason="stop", usage=usage)

    async def CreateEvaluation(self, request: Any, context: Any) -> Any:
        raise Unimplemented("evaluations come later")

    async def DownloadReport(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        if request.name not in self.reports:
            raise NotFound(f"evaluation {request.task_id} has no report yet")
        content = self.reports[request.name]
        async for piece in pieces(content):
            yield eval_service_pb2.DownloadReportResponse(data=piece, total_size=len(content))


@dataclass
class ExportService(export_service_pb2_grpc.ExportServiceServicer):
    """Artifacts by name, and a ZIP. breaks_after is the number of pieces after which a download fails or stalls.

    damaged lets it fail when everything is sent.
    """

    artifacts: dict[str, bytes] = field(default_factory=dict)
    zipped: bytes = b""
    requests: list[Message] = field(default_factory=list)
    error: TunesmithError | None = None
    breaks_after: int = 0
    damaged: bool = False
    stalls: bool = False
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    def __hash__(self) -> int:
        return id(self)

    async def ListFormats(self, request: Any, context: Any) -> Any:
        return export_service_pb2.ListFormatsResponse()

    async def GetExport(self, request: Any, context: Any) -> Any:
        if self.error is not None:
            raise self.error
        artifacts = [
            export_service_pb2.Artifact(name=name, size=len(content), sha256=hashlib.sha256(content).hexdigest())
            for name, content in self.artifacts.items()
        ]
        return export_service_pb2.GetExportResponse(
            export=export_service_pb2.Export(task_id=request.task_id, artifacts=artifacts)
        )

    async def DownloadArtifact(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        content = self.artifacts[request.name]
        async for piece in self._sent(content[request.offset :]):
            yield export_service_pb2.DownloadArtifactResponse(data=piece, total_size=len(content))

    async def DownloadModel(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        if self.error is not None:
            raise self.error
        async for piece in self._sent(self.zipped):
            yield export_service_pb2.DownloadModelResponse(data=piece)

    async def _sent(self, content: bytes) -> AsyncIterator[bytes]:
        number = 0
        try:
            async for piece in pieces(content):
                yield piece
                number += 1
                if number == self.breaks_after:
                    await self._break()
            if self.damaged:
                await self._break()
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise

    async def _break(self) -> None:
        if self.stalls:
            await asyncio.Event().wait()
        raise NotFound("the objects are gone")


async def pieces(content: bytes) -> AsyncIterator[bytes]:
    """Content in small pieces."""
    for start in range(0, len(content), PIECE):
        yield content[start : start + PIECE]
