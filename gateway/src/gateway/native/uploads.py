"""Files as raw bodies: streamed to a service as they come, no faster than it takes them."""

from collections.abc import AsyncIterator
from typing import Any

from google.protobuf.message import Message

from gateway.http import Request, receive_chunks
from gateway.native.methods import DATA, HEADER, Method
from servicekit.errors import InvalidArgument, Problem

LARGEST_PART = 1024 * 1024
_FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")


async def upload(
    request: Request, method: Method, header: Message, metadata: tuple[tuple[str, str], ...], timeout: float
) -> Any:
    """The RPC's answer. timeout is the longest that the body may pause. Raises InvalidArgument for a form."""
    kind = request.header(b"content-type").partition(";")[0].strip().lower()
    if kind in _FORMS:
        message = (
            f"the body is {kind}; send the file itself, for example with curl --data-binary @FILE -H content-type:"
        )
        raise InvalidArgument(f"{message}application/octet-stream", reason="BODY_IS_A_FORM")
    try:
        return await method.call(_parts(request, method, header, timeout), metadata=metadata)
    except InvalidArgument as error:
        problems = [Problem(item.field.removeprefix(f"{HEADER}."), item.message) for item in error.problems]
        text = "" if problems else error.message
        raise InvalidArgument(text, reason=error.reason, problems=problems, metadata=error.metadata) from None


async def _parts(request: Request, method: Method, header: Message, timeout: float) -> AsyncIterator[Message]:
    assert method.part is not None
    yield method.part(**{HEADER: header})
    async for chunk in receive_chunks(request, timeout):
        for start in range(0, len(chunk), LARGEST_PART):
            yield method.part(**{DATA: chunk[start : start + LARGEST_PART]})
