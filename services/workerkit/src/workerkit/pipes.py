"""Reads lines from a child's pipe as they come, so that the child never waits for its reader."""

import asyncio
import os
from collections.abc import AsyncIterator

MAX_LINE_BYTES = 1 << 20
READ_BYTES = 256 * 1024


class LineReader:
    """Splits a pipe into lines. A line longer than MAX_LINE_BYTES comes in pieces of that size.

    The descriptor is watched and closed here: uvloop's pipe transports close it and then the file object that it came
    in, by when its number may belong to a file that another thread has just opened.
    """

    def __init__(self, descriptor: int) -> None:
        """Begins to read; the reader owns the descriptor from now on."""
        self._descriptor: int | None = descriptor
        self._partial = bytearray()
        self._lines: list[bytes] = []
        self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        os.set_blocking(descriptor, False)
        self._loop.add_reader(descriptor, self._read)

    def _read(self) -> None:
        if self._descriptor is None:
            return
        try:
            data = os.read(self._descriptor, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._split(data)
        else:
            self.close()

    def _split(self, data: bytes) -> None:
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

    def close(self) -> None:
        """Stops reading, though others may hold the pipe open."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        self._loop.remove_reader(descriptor)
        os.close(descriptor)
        if self._partial:
            self._lines.append(bytes(self._partial))
            self._partial.clear()
        self._news.set()

    async def __aiter__(self) -> AsyncIterator[list[bytes]]:
        try:
            while self._descriptor is not None or self._lines:
                await self._news.wait()
                self._news.clear()
                lines, self._lines = self._lines, []
                if lines:
                    yield lines
        finally:
            self.close()
