"""/api/training and /api/llm-finetuning: the shape of errors, who may call, and that every route is described."""

from typing import Any

import pytest
from starlette.routing import Mount, Route

from gateway.backends import connect
from gateway.guide.spool import Spool
from gateway.llm_finetuning.routes import llm_finetuning_routes
from gateway.settings import GatewaySettings
from gateway.setup import describe
from gateway.tests.conftest import Gateway
from gateway.training.routes import training_routes
from servicekit.errors import (
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    Unavailable,
)


@pytest.mark.parametrize(
    ("error", "status", "document"),
    [
        (NotFound("there is no task x"), 404, {"detail": "there is no task x"}),
        (FailedPrecondition("it has ended"), 400, {"detail": "it has ended"}),
        (InvalidArgument("no"), 400, {"detail": "no"}),
        (Unavailable("away"), 503, {"detail": "away"}),
        (Internal("id 7"), 500, {"success": False, "error": "Internal Server Error", "message": "id 7"}),
    ],
)
async def test_errors_of_the_services(gateway: Gateway, error: Any, status: int, document: Any) -> None:
    gateway.tasks.error = error
    response = await gateway.client.get("/api/training/status/x")
    assert (response.status_code, response.json()) == (status, document)


async def test_routes_that_are_not_there(gateway: Gateway) -> None:
    response = await gateway.client.get("/api/training/nothing")
    assert (response.status_code, response.json()) == (404, {"detail": "Not Found"})
    response = await gateway.client.get("/api/training/start")
    assert (response.status_code, response.json()) == (405, {"detail": "Method Not Allowed"})
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    "headers", [{"authorization": ""}, {"authorization": "Bearer x"}, {"authorization": "Basic eA=="}]
)
@pytest.mark.parametrize("path", ["/api/training/tasks", "/api/llm-finetuning/tasks"])
async def test_a_token_is_needed(gateway: Gateway, path: str, headers: dict[str, str]) -> None:
    response = await gateway.client.get(path, headers=headers)
    assert (response.status_code, list(response.json())) == (401, ["detail"])
    assert response.headers["www-authenticate"] == "Bearer"
    assert not gateway.tasks.requests


async def test_every_route_is_described() -> None:
    """Of both surfaces; each request's ranges and defaults are those of its surface."""
    settings = GatewaySettings(port=0)
    backends = connect(settings)
    served: set[tuple[str, str]] = set()
    spool = Spool(settings)
    for mount in (training_routes(backends, settings, spool), llm_finetuning_routes(backends, settings, spool)):
        assert isinstance(mount, Mount)
        for route in mount.routes:
            assert isinstance(route, Route)
            verbs = set(route.methods or ()) - {"HEAD"}
            served |= {(mount.path + route.path, verb.lower()) for verb in verbs}
    await backends.close()
    document = describe()
    prefixes = ("/api/training", "/api/llm-finetuning")
    described = {
        (path, verb) for path in document["paths"] if path.startswith(prefixes) for verb in document["paths"][path]
    }
    assert described == served
    schemas = document["components"]["schemas"]
    epochs = schemas["TrainingRequest"]["properties"]["epochs"]
    assert (epochs["minimum"], epochs["maximum"], epochs["default"]) == (1, 100, 10)
    assert schemas["QLoRARequest"]["properties"]["lora_r"]["default"] == 64
    assert schemas["LoRARequest"]["properties"]["lora_r"]["maximum"] == 256
    form = document["paths"]["/api/llm-finetuning/qlora"]["post"]["requestBody"]["content"]["multipart/form-data"][
        "schema"
    ]
    assert form["required"] == ["dataset", "base_model"]
    assert form["properties"]["dataset"]["format"] == "binary"
    assert "train_file" not in form["properties"]
    identifiers = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(set(identifiers)) == len(identifiers)
