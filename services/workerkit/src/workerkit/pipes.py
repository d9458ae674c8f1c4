"""Reads lines from a child's pipe as they come, so that the child never waits for its reader."""

import asyncio
import os
from collections.abc import AsyncIterator

MAX_LINE_BYTES = 1 << 20


class LineReader(asyncio.Protocol):
    """Splits a pipe into lines. A line longer than MAX_LINE_BYTES comes in pieces of that size."""

    def __init__(self) -> None:
        self._partial = bytearray()
        self._lines: list[bytes] = []
        self._news = asyncio.Event()
        self._closed = False
        self._transport: asyncio.BaseTransport | None = None

    @classmethod
    async def open(cls, descriptor: int) -> "LineReader":
        """Begins to read; the reader owns the descriptor from now on."""
        reader = cls()
        loop = asyncio.get_running_loop()
        reader._transport, _ = await loop.connect_read_pipe(lambda: reader, os.fdopen(descriptor, "rb", buffering=0))
        return reader

    def data_received(self, data: bytes) -> None:
        self._partial += data
        *lines, rest = bytes(self._partial).split(b"\n")
        whole = len(rest) - len(rest) % MAX_LINE_BYTES
        if whole:
            lines.append(rest[:whole])
        self._partial = bytearray(rest[whole:])
        for line in lines:
            self._lines += [line[at : at + MAX_LINE_BYTES] for at in range(0, len(line) or 1, MAX_LINE_BYTES)]
        if lines:
            self._news.set()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._partial:
            self._lines.append(bytes(self._partial))
            self._partial.clear()
        self._closed = True
        self._news.set()

    def close(self) -> None:
        """Stops reading, though others may hold the pipe open."""
        if self._transport is not None:
            self._transport.close()

    async def __aiter__(self) -> AsyncIterator[list[bytes]]:
        try:
            while not (self._closed and not self._lines):
                await self._news.wait()
                self._news.clear()
                lines, self._lines = self._lines, []
                if lines:
                    yield lines
        finally:
            self.close()
