"""Bodies that come from a streaming RPC: sent as they come, and broken off with the RPC."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import grpc
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.http import disconnected
from servicekit.errors import DeadlineExceeded, TunesmithError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Source:
    """A streaming RPC that has begun to answer; first is its first message, None when there was none."""

    call: Any
    messages: AsyncIterator[Any]
    first: Any

    @classmethod
    async def open(cls, call: Any, seconds: float) -> "Source":
        """Waits for the first message, so that errors come before the answer has begun.

        Raises what the service raises, and DeadlineExceeded.
        """
        messages = aiter(call)
        try:
            async with asyncio.timeout(seconds):
                first = await anext(messages, None)
        except TimeoutError:
            call.cancel()
            raise DeadlineExceeded(f"the first bytes did not come within {seconds:g} seconds") from None
        return cls(call, messages, first)

    async def data(self) -> AsyncIterator[bytes]:
        """The bytes of every message."""
        message = self.first
        while message is not None:
            if message.data:
                yield message.data
            message = await anext(self.messages, None)

    async def ended(self) -> None:
        """Waits for the end after what data has given. Raises what the service finds wrong at the end."""
        async for _ in self.messages:
            pass


class Download(Response):
    """A file from a source; of length bytes, or for as long as the source goes on where that is not known.

    to_end says that these bytes are the file's last ones: of them nothing is complete before the source has ended
    without error. An RPC that breaks off breaks the connection off, so that nobody takes a part for the whole.
    """

    def __init__(
        self,
        source: Source,
        headers: Mapping[str, str],
        *,
        status: int = 200,
        length: int | None = None,
        to_end: bool = True,
    ) -> None:
        size = {} if length is None else {"content-length": str(length)}
        self.status_code = status
        self.background = None
        self._source = source
        self._length = length
        self._to_end = to_end
        self.init_headers({**headers, **size})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the answer until it ends or the client leaves."""
        left = asyncio.ensure_future(disconnected(receive))
        sending = asyncio.ensure_future(self._send(send))
        try:
            await asyncio.wait((sending, left), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        except (TunesmithError, grpc.aio.AioRpcError) as error:
            logger.warning("%s was broken off: %s", scope["path"], error)
        finally:
            self._source.call.cancel()
            for future in (sending, left):
                future.cancel()
            await asyncio.gather(sending, left, return_exceptions=True)

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        left = self._length
        async for data in self._source.data():
            piece = data if left is None else data[:left]
            left = None if left is None else left - len(piece)
            if left == 0 and self._to_end:
                await self._source.ended()
            await send({"type": "http.response.body", "body": piece, "more_body": left != 0})
            if left == 0:
                return
        if not left:
            await send({"type": "http.response.body", "body": b""})


def attachment(name: str, *, inline: bool = False) -> str:
    """The Content-Disposition of a file (RFC 6266)."""
    kind = "inline" if inline else "attachment"
    plain = "".join(
        letter if letter.isascii() and letter.isprintable() and letter not in '"\\' else "_" for letter in name
    )
    extended = "" if plain == name else f"; filename*=UTF-8''{quote(name, safe='')}"
    return f'{kind}; filename="{plain}"{extended}'
