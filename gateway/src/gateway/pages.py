"""What is served beside the native API: health, the description of the API, and the documented surfaces."""

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gateway.health import SERVING, Health
from gateway.http import METHOD_NOT_ALLOWED, http_status
from gateway.native import errors
from servicekit.errors import NotFound, TunesmithError, Unimplemented


def build_pages(health: Health, routes: list[BaseRoute]) -> Starlette:
    """The application of everything outside /v1."""

    async def healthz(_: Request) -> Response:
        report = await health.check()
        failing = [name for name, status in report.services.items() if status != SERVING]
        document = {"status": SERVING if report.healthy else "NOT_SERVING", "failing": failing}
        body = orjson.dumps({**document, "services": dict(report.services)})
        return Response(body, 200 if report.healthy else 503, media_type="application/json")

    return Starlette(
        routes=[Route("/healthz", healthz), *routes],
        exception_handlers={HTTPException: _http_error},
    )


async def _http_error(request: Request, error: Exception) -> Response:
    """Errors of the routing itself, in the native form."""
    assert isinstance(error, HTTPException)
    path = request.scope["path"]
    problem: TunesmithError
    if error.status_code == 405:
        problem = Unimplemented(f"{path} does not take {request.method}", reason=METHOD_NOT_ALLOWED)
    else:
        problem = NotFound(f"there is nothing at {path}; /docs shows what there is", reason="ROUTE_NOT_FOUND")
    body = orjson.dumps(errors.document(problem))
    return Response(body, http_status(problem), headers=dict(error.headers or {}), media_type="application/json")
