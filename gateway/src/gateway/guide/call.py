"""One request on a route of the training guide: who calls, and what path, query and body say."""

import asyncio
import json
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

from gateway import http
from gateway.app import REQUEST
from gateway.calls import call_metadata
from gateway.guide.errors import QUERY
from gateway.guide.spool import Spool
from gateway.native.api import BODY_NOT_JSON
from gateway.settings import GatewaySettings
from parameterkit.messages import received
from servicekit.errors import Aborted, InvalidArgument, Problem
from servicekit.identity import ANONYMOUS

T = TypeVar("T")

_LONGEST_KEY = 128


class Call:
    """A request with the identity that it is made with; spool takes the files of forms."""

    def __init__(self, request: Request, settings: GatewaySettings, spool: Spool) -> None:
        self.http: http.Request = request.scope[REQUEST]
        self.metadata = call_metadata(self.http)
        self.settings = settings
        self.spool = spool
        self.user = ANONYMOUS.user
        self._request = request

    async def ask(self, method: Any, message: Any) -> Any:
        """A call of a service on behalf of the caller."""
        return await method(message, timeout=self.settings.request_seconds, metadata=self.metadata)

    async def while_there(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of work, which ends when the caller leaves; only after the body was read. Raises Aborted."""
        working = asyncio.ensure_future(work)
        left = asyncio.ensure_future(http.disconnected(self.http.receive))
        try:
            await asyncio.wait((working, left), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            raise Aborted("the caller has left", reason=http.CALLER_LEFT)
        finally:
            working.cancel()
            left.cancel()
            await asyncio.gather(working, left, return_exceptions=True)

    def path(self, name: str) -> str:
        """A part of the path."""
        return str(self._request.path_params[name])

    def text(self, name: str) -> str:
        """A query parameter, empty when it is not given."""
        return self._request.query_params.get(name, "").strip()

    def count(self, name: str, default: int, most: int) -> int:
        """A query parameter that is a whole number from 1. Raises InvalidArgument."""
        text = self.text(name)
        if not text:
            return default
        if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= most):
            message = f"a whole number from 1 to {most} was expected, not {received(text)}"
            raise InvalidArgument(problems=[Problem(QUERY + name, message)])
        return int(text)

    def repeat_key(self) -> str:
        """What the caller names a request by that it may repeat, empty when it does not."""
        return self.http.header(b"idempotency-key")[:_LONGEST_KEY]

    async def document(self) -> dict[str, Any]:
        """The body, a JSON object; NaN and infinities are let through, so that their field can be named.

        Raises InvalidArgument.
        """
        body = await http.read_body(self.http, self.settings.max_body_bytes, self.settings.request_seconds)
        try:
            document = json.loads(body)
            json.dumps(document, ensure_ascii=False).encode()  # halves of surrogate pairs are no text
        except (ValueError, RecursionError) as error:
            raise InvalidArgument(f"the body is not JSON: {error}", reason=BODY_NOT_JSON) from None
        if not isinstance(document, dict):
            message = f"the body must be a JSON object, not {received(document)}"
            raise InvalidArgument(message, reason=BODY_NOT_JSON)
        return document
