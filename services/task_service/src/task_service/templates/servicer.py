"""TemplateService over gRPC: convert, call, convert."""

from dataclasses import dataclass
from typing import Any

from servicekit.identity import current_principal
from task_service.templates.use_cases import Templates
from tunesmith.task.v1 import template_service_pb2 as pb
from tunesmith.task.v1 import template_service_pb2_grpc

Context = Any


@dataclass(frozen=True, slots=True)
class TemplateServicer(template_service_pb2_grpc.TemplateServiceServicer):
    """Everybody sees the platform's templates, and users their own."""

    templates: Templates

    async def CreateTemplate(self, request: pb.CreateTemplateRequest, context: Context) -> pb.CreateTemplateResponse:
        return pb.CreateTemplateResponse(template=await self.templates.create(current_principal(), request))

    async def GetTemplate(self, request: pb.GetTemplateRequest, context: Context) -> pb.GetTemplateResponse:
        template = await self.templates.get(current_principal(), request.template_id, request.version)
        return pb.GetTemplateResponse(template=template)

    async def ListTemplates(self, request: pb.ListTemplatesRequest, context: Context) -> pb.ListTemplatesResponse:
        templates, token = await self.templates.page(current_principal(), request)
        return pb.ListTemplatesResponse(templates=templates, next_page_token=token)

    async def DeleteTemplate(self, request: pb.DeleteTemplateRequest, context: Context) -> pb.DeleteTemplateResponse:
        await self.templates.delete(current_principal(), request.template_id)
        return pb.DeleteTemplateResponse()
