"""The one tree of errors that crosses service boundaries.

A server interceptor turns an error into a gRPC status with ErrorInfo and BadRequest details; a client interceptor
turns it back, so that callers catch the same classes on both sides of the wire.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "tunesmith"
STATUS_DETAILS_KEY = "grpc-status-details-bin"
MAX_MESSAGE_CHARACTERS = 1000
MAX_PROBLEMS_BYTES = 40 * 1024
VIOLATION_OVERHEAD_BYTES = 12
# What a client must accept, headers in base64 and the rest of the metadata included.
MAX_METADATA_BYTES = 96 * 1024


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a request: the field's path and what to do about it."""

    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


class TunesmithError(Exception):
    """Base of all errors that a caller may see.

    reason is a stable word for programs, problems lists everything wrong with a request at once.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN
    default_reason: ClassVar[str] = "UNKNOWN"

    def __init__(
        self,
        message: str = "",
        *,
        reason: str = "",
        problems: Sequence[Problem] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.problems = tuple(problems)
        self.message = message or "; ".join(str(problem) for problem in self.problems)
        self.reason = reason or self.default_reason
        self.metadata = dict(metadata or {})
        super().__init__(self.message)


class InvalidArgument(TunesmithError):
    """The request is wrong whatever the state of the system."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    default_reason = "INVALID_ARGUMENT"


class NotFound(TunesmithError):
    """The thing does not exist, or is not the caller's."""

    code = grpc.StatusCode.NOT_FOUND
    default_reason = "NOT_FOUND"


class AlreadyExists(TunesmithError):
    """Another thing has the same identity."""

    code = grpc.StatusCode.ALREADY_EXISTS
    default_reason = "ALREADY_EXISTS"


class FailedPrecondition(TunesmithError):
    """The state of the thing does not allow the request."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    default_reason = "FAILED_PRECONDITION"


class Aborted(TunesmithError):
    """Somebody else was faster; try again later."""

    code = grpc.StatusCode.ABORTED
    default_reason = "ABORTED"


class Unauthenticated(TunesmithError):
    """The token is missing, bad or expired."""

    code = grpc.StatusCode.UNAUTHENTICATED
    default_reason = "UNAUTHENTICATED"


class PermissionDenied(TunesmithError):
    """The caller may not do this."""

    code = grpc.StatusCode.PERMISSION_DENIED
    default_reason = "PERMISSION_DENIED"


class ResourceExhausted(TunesmithError):
    """A limit or quota is used up."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    default_reason = "RESOURCE_EXHAUSTED"


class Unavailable(TunesmithError):
    """A service or store cannot be reached now."""

    code = grpc.StatusCode.UNAVAILABLE
    default_reason = "UNAVAILABLE"


class DeadlineExceeded(TunesmithError):
    """The answer took too long."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    default_reason = "DEADLINE_EXCEEDED"


class Unimplemented(TunesmithError):
    """This version does not do this."""

    code = grpc.StatusCode.UNIMPLEMENTED
    default_reason = "NOT_IMPLEMENTED"


class Internal(TunesmithError):
    """A defect. The message carries an id under which the log has the trace."""

    code = grpc.StatusCode.INTERNAL
    default_reason = "INTERNAL"


_BY_CODE: dict[grpc.StatusCode, type[TunesmithError]] = {kind.code: kind for kind in TunesmithError.__subclasses__()}


def wire_message(error: TunesmithError) -> str:
    """The message of an error as it fits into a header."""
    text = error.message
    return text if len(text) <= MAX_MESSAGE_CHARACTERS else f"{text[:MAX_MESSAGE_CHARACTERS]} ..."


def status_details(error: TunesmithError) -> bytes:
    """The google.rpc.Status of an error, serialized for the trailing metadata, whose size is limited."""
    info = any_pb2.Any()
    info.Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata))
    details = [info]
    if error.problems:
        bad_request = any_pb2.Any()
        bad_request.Pack(error_details_pb2.BadRequest(field_violations=_violations(error.problems)))
        details.append(bad_request)
    code: int = error.code.value[0]
    status = status_pb2.Status(code=code, message=wire_message(error), details=details)
    return bytes(status.SerializeToString())


def _violations(problems: Sequence[Problem]) -> list[error_details_pb2.BadRequest.FieldViolation]:
    violations: list[error_details_pb2.BadRequest.FieldViolation] = []
    size = 0
    for number, problem in enumerate(problems):
        size += len(problem.field.encode()) + len(problem.message.encode()) + VIOLATION_OVERHEAD_BYTES
        if size > MAX_PROBLEMS_BYTES:
            more = f"and {len(problems) - number} more problems"
            return [*violations, error_details_pb2.BadRequest.FieldViolation(description=more)]
        violations.append(error_details_pb2.BadRequest.FieldViolation(field=problem.field, description=problem.message))
    return violations


def from_rpc_error(error: grpc.aio.AioRpcError) -> TunesmithError:
    """The error that the server raised, rebuilt from a failed call."""
    reason, metadata, problems = "", {}, []
    for key, value in error.trailing_metadata() or ():
        if key != STATUS_DETAILS_KEY or not isinstance(value, bytes):
            continue
        for detail in status_pb2.Status.FromString(value).details:
            info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
            if detail.Unpack(info):
                reason, metadata = info.reason, dict(info.metadata)
            elif detail.Unpack(bad_request):
                problems = [Problem(item.field, item.description) for item in bad_request.field_violations]
    # A call that its caller did not cancel was cancelled by a server that is going away.
    code = grpc.StatusCode.UNAVAILABLE if error.code() is grpc.StatusCode.CANCELLED else error.code()
    kind = _BY_CODE.get(code, Internal)
    return kind(error.details() or "", reason=reason, problems=problems, metadata=metadata)
