"""A TCP proxy that misbehaves on demand."""

import asyncio
from contextlib import suppress
from typing import Self

CHUNK = 64 * 1024


class Proxy:
    """Passes connections on to a port of this machine. All limits are in bytes sent towards the client."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._server: asyncio.Server
        self._connections: set[asyncio.Task[None]] = set()
        self.port = 0
        self.connections = 0
        self.cut_after: list[int] = []
        self.delay = 0.0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self.cut()

    async def cut(self) -> None:
        """Breaks every open connection."""
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        limit = self.cut_after.pop(0) if self.cut_after else None
        upstream: asyncio.StreamWriter | None = None
        try:
            server, upstream = await asyncio.open_connection("127.0.0.1", self._target)
            forth = asyncio.ensure_future(self._pass(reader, upstream, None))
            back = asyncio.ensure_future(self._pass(server, writer, limit))
            try:
                await asyncio.wait([forth, back], return_when=asyncio.FIRST_COMPLETED)
            finally:
                forth.cancel()
                back.cancel()
                await asyncio.gather(forth, back, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            for side in (writer, upstream):
                if side is not None:
                    side.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int | None) -> None:
        with suppress(OSError):
            while limit != 0 and (chunk := await reader.read(CHUNK if limit is None else min(CHUNK, limit))):
                if self.delay:
                    await asyncio.sleep(self.delay)
                writer.write(chunk)
                await writer.drain()
                limit = None if limit is None else limit - len(chunk)
