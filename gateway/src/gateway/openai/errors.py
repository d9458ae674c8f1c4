"""Errors as OpenAI's clients read them: {"error": {message, type, param, code}}."""

from typing import Any

import orjson
from starlette.responses import Response

from gateway.http import Send, http_status, respond
from gateway.native.errors import headers
from servicekit.errors import NotFound, TunesmithError

AUTHENTICATION, PERMISSION, RATE_LIMIT = "authentication_error", "permission_error", "rate_limit_error"
REQUEST, SERVER = "invalid_request_error", "server_error"
MODEL = "model"
MODEL_NOT_FOUND = "model_not_found"
ROUTE_NOT_FOUND = "ROUTE_NOT_FOUND"
_TYPES = {401: AUTHENTICATION, 403: PERMISSION, 429: RATE_LIMIT}
# What the service calls what a client calls the model.
_MODEL_FIELDS = ("task_id", "checkpoint_step", "artifact", "base_model")
# Clients shorten a conversation when they read this code.
_CODES = {"CONVERSATION_TOO_LONG": "context_length_exceeded"}
_PARAMS = {"CONVERSATION_TOO_LONG": "messages"}


def document(error: TunesmithError) -> dict[str, Any]:
    """The body of an error. param is the first field that is wrong; the message tells of all."""
    status = http_status(error)
    no_model = isinstance(error, NotFound) and error.reason != ROUTE_NOT_FOUND
    param = _PARAMS.get(error.reason)
    if error.problems:
        param = error.problems[0].field
        param = MODEL if param in _MODEL_FIELDS else param
    elif no_model:
        param = MODEL
    code = MODEL_NOT_FOUND if no_model else _CODES.get(error.reason, error.reason.lower())
    kind = _TYPES.get(status, SERVER if status >= 500 else REQUEST)
    return {"error": {"message": error.message, "type": kind, "param": param, "code": code}}


def failed(error: TunesmithError) -> Response:
    """The answer to a request that failed."""
    response = answer(document(error), http_status(error))
    for name, value in headers(error):
        response.headers[name.decode()] = value.decode()
    return response


async def send_failed(send: Send, error: TunesmithError) -> None:
    """The same where no answer has begun."""
    await respond(send, http_status(error), orjson.dumps(document(error)), headers=headers(error))


def answer(content: Any, status: int = 200) -> Response:
    """An answer in JSON."""
    return Response(orjson.dumps(content), status, media_type="application/json")
