"""What a call can fail with: one exception class per status, each listing every problem the platform found."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a request: the field's path and what to do about it."""

    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


class ApiError(Exception):
    """Base of all errors of the SDK.

    reason is a stable word for programs; problems lists everything wrong with a request at once; http_status is 0 when
    the platform did not answer.
    """

    status: ClassVar[str] = "UNKNOWN"

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        problems: Sequence[Problem] = (),
        metadata: Mapping[str, str] | None = None,
        http_status: int = 0,
    ) -> None:
        self.message = message
        self.reason = reason or self.status
        self.problems = tuple(problems)
        self.metadata = dict(metadata or {})
        self.http_status = http_status
        self.retry_after: float | None = None
        super().__init__(message)

    def __str__(self) -> str:
        extra = [str(problem) for problem in self.problems if str(problem) not in self.message]
        return "\n".join([self.message, *(f"  - {line}" for line in extra)])


class InvalidArgument(ApiError):
    """The request is wrong whatever the state of the platform."""

    status = "INVALID_ARGUMENT"


class NotFound(ApiError):
    """The thing does not exist, or is not the caller's."""

    status = "NOT_FOUND"


class AlreadyExists(ApiError):
    """Another thing has the same identity."""

    status = "ALREADY_EXISTS"


class FailedPrecondition(ApiError):
    """The state of the thing does not allow the request."""

    status = "FAILED_PRECONDITION"


class Aborted(ApiError):
    """Somebody else was faster; try again later."""

    status = "ABORTED"


class Unauthenticated(ApiError):
    """The token is missing, bad or expired."""

    status = "UNAUTHENTICATED"


class PermissionDenied(ApiError):
    """The caller may not do this."""

    status = "PERMISSION_DENIED"


class ResourceExhausted(ApiError):
    """A limit or quota is used up."""

    status = "RESOURCE_EXHAUSTED"


class Unavailable(ApiError):
    """The platform, or a part of it, cannot be reached now."""

    status = "UNAVAILABLE"


class DeadlineExceeded(ApiError):
    """The answer took too long."""

    status = "DEADLINE_EXCEEDED"


class Unimplemented(ApiError):
    """This version of the platform does not do this."""

    status = "UNIMPLEMENTED"


class Internal(ApiError):
    """A defect of the platform; the message carries an id for its log."""

    status = "INTERNAL"


_BY_STATUS: dict[str, type[ApiError]] = {kind.status: kind for kind in ApiError.__subclasses__()}
_BY_HTTP: dict[int, type[ApiError]] = {
    400: InvalidArgument,
    401: Unauthenticated,
    403: PermissionDenied,
    404: NotFound,
    409: AlreadyExists,
    429: ResourceExhausted,
    501: Unimplemented,
    502: Unavailable,
    503: Unavailable,
    504: DeadlineExceeded,
}


def from_response(http_status: int, content: bytes) -> ApiError:
    """The error in an answer of the platform: {"error": {code, message, status, details}} as in google.rpc's mapping.

    Answers of proxies in between, which have another form, become the class that fits the HTTP status.
    """
    try:
        document = json.loads(content)
    except ValueError:
        document = None
    error = document.get("error") if isinstance(document, dict) else None
    if not isinstance(error, dict):
        kind = _BY_HTTP.get(http_status, Internal if http_status >= 500 else ApiError)
        text = content.decode(errors="replace").strip()[:500]
        return kind(f"HTTP {http_status}: {text or 'no explanation'}", http_status=http_status)
    return from_document(error, http_status)


def from_document(error: Mapping[str, Any], http_status: int = 0) -> ApiError:
    """The error that {code, message, status, details} describes."""
    http_status = http_status or int(error.get("code", 0))
    kind = _BY_STATUS.get(str(error.get("status", ""))) or _BY_HTTP.get(http_status, Internal)
    reason, metadata, problems = "", {}, []
    for detail in error.get("details", ()):
        name = str(detail.get("@type", ""))
        if name.endswith("google.rpc.ErrorInfo"):
            reason, metadata = str(detail.get("reason", "")), dict(detail.get("metadata", {}))
        elif name.endswith("google.rpc.BadRequest"):
            violations = detail.get("fieldViolations") or detail.get("field_violations") or ()
            problems = [Problem(item.get("field", ""), item.get("description", "")) for item in violations]
    message = str(error.get("message") or kind.status)
    return kind(message, reason=reason, problems=problems, metadata=metadata, http_status=http_status)
