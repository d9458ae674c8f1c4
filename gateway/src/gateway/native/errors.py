"""Errors as the native API shows them: google.rpc.Status in JSON (AIP-193), its details also as plain members."""

from typing import Any

import orjson

from gateway.http import Header, Send, http_status, respond
from servicekit.errors import DOMAIN, Problem, ResourceExhausted, TunesmithError, Unauthenticated, Unavailable
from servicekit.spooling import TOO_MANY_UPLOADS

_TYPE = "type.googleapis.com/google.rpc"
_RETRY: tuple[Header, ...] = ((b"retry-after", b"1"),)
_RETRY_LATER: tuple[Header, ...] = ((b"retry-after", b"5"),)
_CHALLENGE: tuple[Header, ...] = ((b"www-authenticate", b"Bearer"),)


def document(error: TunesmithError) -> dict[str, Any]:
    """{"error": {code, status, reason, message, problems, metadata, details}}."""
    return {
        "error": {
            "code": http_status(error),
            "status": error.code.name,
            "reason": error.reason,
            "message": error.message,
            "problems": [{"field": problem.field, "message": problem.message} for problem in error.problems],
            "metadata": error.metadata,
            "details": _details(error),
        }
    }


def _details(error: TunesmithError) -> list[dict[str, Any]]:
    info = {"@type": f"{_TYPE}.ErrorInfo", "reason": error.reason, "domain": DOMAIN, "metadata": error.metadata}
    if not error.problems:
        return [info]
    return [info, {"@type": f"{_TYPE}.BadRequest", "fieldViolations": [_violation(item) for item in error.problems]}]


def _violation(problem: Problem) -> dict[str, str]:
    return {"field": problem.field, "description": problem.message}


def headers(error: TunesmithError) -> tuple[Header, ...]:
    """Headers that go with an error's status."""
    if isinstance(error, Unauthenticated):
        return _CHALLENGE
    if error.reason == TOO_MANY_UPLOADS:
        return _RETRY_LATER
    if isinstance(error, ResourceExhausted) and (seconds := error.metadata.get("retry_after_seconds", "")).isdecimal():
        return ((b"retry-after", seconds.encode()),)
    return _RETRY if isinstance(error, Unavailable) else ()


async def send_error(send: Send, error: TunesmithError, extra: tuple[Header, ...] = ()) -> None:
    """Answers with an error."""
    await respond(send, http_status(error), orjson.dumps(document(error)), headers=(*headers(error), *extra))
