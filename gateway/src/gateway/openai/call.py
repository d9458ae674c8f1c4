"""One request on these routes: who calls, and its body."""

import asyncio
import json
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

from gateway import http
from gateway.app import REQUEST
from gateway.calls import call_metadata
from gateway.native.api import BODY_NOT_JSON
from gateway.settings import GatewaySettings
from servicekit.errors import Aborted, DeadlineExceeded, InvalidArgument

T = TypeVar("T")


class Call:
    """A request with the identity that it is made with."""

    def __init__(self, request: Request, settings: GatewaySettings) -> None:
        self.http: http.Request = request.scope[REQUEST]
        self.metadata = call_metadata(self.http)
        self.settings = settings
        self._request = request

    def path(self, name: str) -> str:
        """A part of the path."""
        return str(self._request.path_params[name])

    async def ask(self, method: Any, message: Any) -> Any:
        """A call of a service on behalf of the caller."""
        return await method(message, timeout=self.settings.request_seconds, metadata=self.metadata)

    async def document(self) -> dict[str, Any]:
        """The body, a JSON object. Raises InvalidArgument."""
        body = await http.read_body(self.http, self.settings.max_body_bytes, self.settings.request_seconds)
        try:
            document = json.loads(body)
            json.dumps(document, ensure_ascii=False).encode()  # halves of surrogate pairs are no text
        except (ValueError, RecursionError) as error:
            raise InvalidArgument(f"the body is not JSON: {error}", reason=BODY_NOT_JSON) from None
        if not isinstance(document, dict):
            raise InvalidArgument("the body must be a JSON object", reason=BODY_NOT_JSON)
        return document

    async def in_time(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of work, which ends when the caller leaves or it takes too long; only after the body was read.

        Raises Aborted, DeadlineExceeded.
        """
        seconds = self.settings.wait_seconds
        working = asyncio.ensure_future(work)
        left = asyncio.ensure_future(http.disconnected(self.http.receive))
        try:
            await asyncio.wait((working, left), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            if left.done():
                raise Aborted("the caller has left", reason=http.CALLER_LEFT)
            raise DeadlineExceeded(f"the answer was not ready within {seconds:g} seconds; ask for a stream")
        finally:
            working.cancel()
            left.cancel()
            await asyncio.gather(working, left, return_exceptions=True)
