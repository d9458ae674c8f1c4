"""Facts and log lines on their way to the broker: in order, without loss over its outages, without slowing work.

What the broker does not take yet waits in memory and, beyond a limit, in a file.
"""

import asyncio
import contextlib
import json
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from servicekit.bus import Outgoing
from servicekit.errors import TunesmithError

logger = logging.getLogger(__name__)

MEMORY_BYTES = 4 << 20
BATCH_MESSAGES = 64
BATCH_BYTES = 1 << 20
RETRY_SECONDS = 0.1
RETRY_CEILING_SECONDS = 2.0


class Publisher(Protocol):
    """Where messages go."""

    async def publish_all(self, messages: Sequence[Outgoing]) -> None:
        """Publishes in order and waits until all are stored. Raises TunesmithError when any was not."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A message that waits. One that is `alone` is sent only when all before it are stored."""

    message: Outgoing
    alone: bool = False


class Overflow:
    """The file that takes entries beyond the limit, read in the order they were written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._read_at = 0
        self._write_at = 0

    def __bool__(self) -> bool:
        return self._write_at > self._read_at

    def append(self, entry: Entry) -> None:
        """Writes an entry whole, or raises OSError and leaves the file as it was."""
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("w+b", buffering=0)
        head = json.dumps(
            [entry.message.subject, entry.message.message_id, entry.alone, len(entry.message.data)]
        ).encode()
        record = head + b"\n" + entry.message.data
        self._file.seek(self._write_at)
        if self._file.write(record) != len(record):
            raise OSError("the disk is full")
        self._write_at += len(record)

    def take(self, limit: int) -> list[Entry]:
        """The oldest entries, about limit bytes of them."""
        if self._file is None:
            return []
        self._file.seek(self._read_at)
        entries: list[Entry] = []
        end = min(self._write_at, self._read_at + limit)
        with open(self._file.fileno(), "rb", closefd=False) as reader:
            while self._read_at < end:
                head = reader.readline()
                subject, message_id, alone, size = json.loads(head)
                entries.append(Entry(Outgoing(subject, reader.read(size), message_id), alone))
                self._read_at += len(head) + size
        if not self:
            self._file.truncate(0)
            self._read_at = self._write_at = 0
        return entries

    def remove(self) -> None:
        """Forgets everything and removes the file."""
        self._read_at = self._write_at = 0
        if self._file is not None:
            self._file.close()
            self._file = None
            with contextlib.suppress(OSError):
                self._path.unlink()


class Spool:
    """An ordered queue to the broker. `put` never waits; `pump` sends, asking `gate` before each batch."""

    def __init__(
        self, publisher: Publisher, path: Path, gate: Callable[[], Awaitable[None]], memory_bytes: int = MEMORY_BYTES
    ) -> None:
        self._publisher = publisher
        self._gate = gate
        self._memory_bytes = memory_bytes
        self._memory: deque[Entry] = deque()
        self._held = 0
        self._overflow = Overflow(path)
        self._last: deque[Entry] = deque()  # behind the overflow, for what no disk takes
        self._lost = 0
        self._news = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    def put(self, message: Outgoing, *, alone: bool = False) -> None:
        """Adds a message behind all others. When neither memory nor disk takes it, an `alone` one is kept still."""
        entry = Entry(message, alone)
        if self._overflow or self._last or self._held >= self._memory_bytes:
            self._put_aside(entry)
        else:
            self._keep(entry)
        self._empty.clear()
        self._news.set()

    def _put_aside(self, entry: Entry) -> None:
        try:
            if not self._last:
                self._overflow.append(entry)
                return
        except OSError as error:
            logger.error("spool: %s; log lines and measurements are dropped from now on", error)
        if entry.alone:
            self._last.append(entry)
        else:
            self._lost += 1

    def _keep(self, entry: Entry) -> None:
        self._memory.append(entry)
        self._held += len(entry.message.data)

    async def pump(self) -> None:
        """Sends for ever; ends only by being cancelled, or when the gate raises."""
        delay = RETRY_SECONDS
        while True:
            await self._news.wait()
            batch = self._next_batch()
            if not batch:
                self._news.clear()
                self._empty.set()
                continue
            await self._gate()
            try:
                await self._publisher.publish_all([entry.message for entry in batch])
            except TunesmithError as error:
                logger.warning("spool: %s; %d messages wait in memory", error, len(self._memory))
                await asyncio.sleep(delay * random.uniform(0.5, 1.0))
                delay = min(2 * delay, RETRY_CEILING_SECONDS)
                continue
            delay = RETRY_SECONDS
            for entry in batch:
                self._memory.popleft()
                self._held -= len(entry.message.data)

    def _next_batch(self) -> list[Entry]:
        if not self._memory:
            for entry in self._overflow.take(BATCH_BYTES):
                self._keep(entry)
        while self._last and not self._memory and not self._overflow:
            self._keep(self._last.popleft())
        batch: list[Entry] = []
        size = 0
        for entry in self._memory:
            if batch and (entry.alone or batch[0].alone or len(batch) == BATCH_MESSAGES or size > BATCH_BYTES):
                break
            batch.append(entry)
            size += len(entry.message.data)
        return batch

    async def drained(self) -> None:
        """Waits until the broker has stored everything."""
        await self._empty.wait()

    def discard(self) -> None:
        """Forgets everything that waits."""
        self._memory.clear()
        self._held = 0
        self._last.clear()
        self._overflow.remove()
