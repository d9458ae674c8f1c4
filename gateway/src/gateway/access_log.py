"""One line for each request, written in batches: a log record for each would cost a tenth of a request's time."""

import asyncio
import time
from typing import TextIO

from gateway.http import Request

FLUSH_SECONDS = 0.2


class AccessLog:
    """Writes method, path, status, time and id, in the form of the other log lines. Neither query nor headers are
    written, because they may carry secrets."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: list[str] = []
        self._second = -1
        self._stamp = ""

    def add(self, request: Request, seconds: float) -> None:
        """Adds a line; it is written within FLUSH_SECONDS."""
        if not self._lines:
            asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.flush)
        now = time.time()
        if int(now) != self._second:
            self._second = int(now)
            self._stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
        path = request.path if request.path.isprintable() else ascii(request.path)
        self._lines.append(
            f"{self._stamp},{int(now * 1000) % 1000:03} INFO gateway.access: "
            f"{request.method} {path} {request.status} {seconds * 1000:.1f}ms {request.id}\n"
        )

    def flush(self) -> None:
        """Writes what was added."""
        if self._lines:
            self._stream.write("".join(self._lines))
            self._stream.flush()
            self._lines.clear()
