"""What the gateway adds to a gRPC call on behalf of a request."""

from gateway.http import Request
from servicekit import telemetry
from servicekit.errors import Unauthenticated

_PASSED_ON = (b"authorization", b"traceparent")
_NOT_TRACED = (b"authorization",)


def call_metadata(request: Request, authorization: str = "") -> tuple[tuple[str, str], ...]:
    """The caller's token, the trace and the request's id as gRPC metadata.

    authorization takes the place of the header of that name. Raises Unauthenticated for a header that is no plain text.
    """
    metadata = [("x-request-id", request.id)]
    if authorization:
        metadata.append(("authorization", _plain(authorization)))
    # While telemetry is on, the channel adds the trace, with the gateway's own span in it.
    for name in _NOT_TRACED if telemetry.enabled() else _PASSED_ON:
        value = request.headers.get(name)
        if value and not (authorization and name == b"authorization"):
            metadata.append((name.decode(), _plain(value.decode("latin-1"))))
    return tuple(metadata)


def _plain(value: str) -> str:
    if not (value.isascii() and value.isprintable()):
        raise Unauthenticated("the token is not valid", reason="TOKEN_INVALID")
    return value
