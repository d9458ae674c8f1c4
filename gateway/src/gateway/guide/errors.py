"""Errors as the training guide's routes answer them: {"detail": ...}, in which 422 lists every field that is wrong."""

from typing import Any

import orjson
from starlette.responses import Response

from gateway.http import http_status
from gateway.native.api import BODY_NOT_JSON
from gateway.native.errors import headers
from parameterkit.messages import REQUIRED
from servicekit.errors import Internal, InvalidArgument, Problem, TunesmithError

UNPROCESSABLE = 422
# Problems of a query parameter are named "query.NAME"; all others are about the body.
QUERY = "query."


def answer(content: Any, status: int = 200) -> Response:
    """An answer in JSON."""
    return Response(orjson.dumps(content), status, media_type="application/json")


def failed(error: TunesmithError) -> Response:
    """The answer to a request that failed."""
    if isinstance(error, Internal):
        document: dict[str, Any] = {"success": False, "error": "Internal Server Error", "message": error.message}
        return answer(document, http_status(error))
    if isinstance(error, InvalidArgument) and (error.problems or error.reason == BODY_NOT_JSON):
        return answer({"detail": _details(error)}, UNPROCESSABLE)
    response = answer({"detail": error.message}, http_status(error))
    for name, value in headers(error):
        response.headers[name.decode()] = value.decode()
    return response


def _details(error: InvalidArgument) -> list[dict[str, Any]]:
    if not error.problems:
        return [{"loc": ["body"], "msg": error.message, "type": "json_invalid"}]
    return [_detail(problem) for problem in error.problems]


def _detail(problem: Problem) -> dict[str, Any]:
    where, name = ("query", problem.field.removeprefix(QUERY)) if problem.field.startswith(QUERY) else ("body", "")
    location = [where, *(part for part in (name or problem.field).split(".") if part)]
    kind = "missing" if problem.message == REQUIRED.en else "value_error"
    return {"loc": location, "msg": problem.message, "type": kind}
