"""What the contract has room for and this version does not offer says so."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from servicekit.errors import Unimplemented
from services.task_service.tests.harness import Client, Service
from tunesmith.task.v1 import (
    template_service_pb2,
    template_service_pb2_grpc,
)

templates = template_service_pb2
Call = Callable[[Any], Awaitable[Any]]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_every_method_is_a_typed_error(service: Service, alice: Client) -> None:
    template = template_service_pb2_grpc.TemplateServiceStub(alice.channel)
    calls: list[tuple[Call, Any]] = [
        (template.CreateTemplate, templates.CreateTemplateRequest(name="t")),
        (template.ListTemplates, templates.ListTemplatesRequest()),
        (template.DeleteTemplate, templates.DeleteTemplateRequest(template_id="t")),
    ]
    for call, request in calls:
        with pytest.raises(Unimplemented, match="not available yet") as caught:
            await call(request)
        assert caught.value.reason == "NOT_IMPLEMENTED"
