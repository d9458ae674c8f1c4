"""Stores the logs of tasks that have ended and then removes their lines from the stream.

The row in log_archives is what counts: it is written after the object, and what was stored before is always a prefix
of what is stored later, so that dying at any point leaves a readable log and the work is simply done again.
"""

import asyncio
import logging
import math
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from servicekit import subjects
from servicekit.bus import EventBus
from servicekit.errors import Internal, TunesmithError
from servicekit.objects import ObjectStore
from task_service.streams.archives import (
    FINAL_WAIT_SECONDS,
    PURGE_AFTER_SECONDS,
    LogArchives,
    StoredLog,
    TaskLog,
    is_complete,
    log_key,
)
from task_service.streams.follow import stored_messages
from task_service.streams.lines import fold, to_text

logger = logging.getLogger(__name__)

LIMIT = 1000
BUFFER_BYTES = 1024 * 1024
POLL_SECONDS = 1.0


class LogArchiver:
    """Run one at a time per database.

    A log is stored when its last batch has come, or final_wait seconds after the end of a task whose worker died.
    Its lines leave the stream purge_after seconds later, so that readers have changed over to the object by then.
    """

    def __init__(
        self,
        bus: EventBus,
        objects: ObjectStore,
        archives: LogArchives,
        *,
        final_wait: float = FINAL_WAIT_SECONDS,
        purge_after: float = PURGE_AFTER_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bus = bus
        self._objects = objects
        self._archives = archives
        self._ended = FirstSeen(clock, final_wait)
        self._stored = FirstSeen(clock, purge_after)
        self._last: float = math.inf

    async def run(self) -> None:
        """Archives and purges until it is cancelled."""
        while True:
            try:
                await self.archive_due()
                await self.purge_due()
            except TunesmithError as error:
                logger.warning("archiving logs: %s; trying again", error.message)
            await asyncio.sleep(POLL_SECONDS)

    async def archive_due(self) -> int:
        """Stores the logs that are complete; how many."""
        await self._notice_a_lost_stream()
        logs = await self._archives.to_archive(LIMIT)
        self._ended.keep({(log.number, log.attempt) for log in logs})
        return sum([await self._attempted(self._archive, log) for log in logs])

    async def _notice_a_lost_stream(self) -> None:
        """At the start and whenever the stream's last sequence went back, as that of a new stream does."""
        _, last = await self._bus.sequences(subjects.LOGS)
        if last < self._last and (logs := await self._archives.stream_ends_at(last)):
            logger.error("log lines were lost with their stream; %s stored logs go on in the new one", logs)
        self._last = last

    async def purge_due(self) -> int:
        """Removes from the stream what has been stored for long enough; of how many logs."""
        logs = await self._archives.to_purge(LIMIT)
        self._stored.keep({(log.number, log.stored.sequence) for log in logs})
        due = [log for log in logs if self._stored.is_old((log.number, log.stored.sequence))]
        return sum([await self._attempted(self._purge, log) for log in due])

    async def _attempted(self, step: Callable[[TaskLog], Awaitable[bool]], log: TaskLog) -> bool:
        """One log's trouble is not another's."""
        try:
            return await step(log)
        except (TunesmithError, OSError) as error:
            logger.warning("log of task %s: %s; trying again", log.task_id, error)
            return False

    async def _archive(self, log: TaskLog) -> bool:
        newest = await self._bus.last_message(subjects.LOGS, subjects.log(log.task_id))
        if not is_complete(log, newest) and not self._ended.is_old((log.number, log.attempt)):
            return False
        stored: StoredLog | None = log.stored
        if newest is not None and newest[0] > log.stored.sequence:
            stored = await self._extend(log, newest[0])
        return stored is not None and await self._archives.store(log, stored)

    async def _extend(self, log: TaskLog, last: int) -> StoredLog | None:
        """Writes the object anew with what the stream has up to last; None when another archiver was faster."""
        with tempfile.TemporaryDirectory(prefix="tunesmith-log-") as folder:
            path = Path(folder) / "log.txt"
            file = await asyncio.to_thread(path.open, "wb", BUFFER_BYTES)
            with file:
                await self._copy_stored(log, file)
                stored = await self._append(log, last, file)
            now = await self._archives.get(log.task_id)
            if stored.sequence != last or now is None or now.stored.sequence != log.stored.sequence:
                return None
            await self._objects.put_file(log_key(log.task_id), path)
        return stored

    async def _copy_stored(self, log: TaskLog, file: BinaryIO) -> None:
        if log.stored.size == 0:
            return
        async with aclosing(self._objects.read(log_key(log.task_id), 0, log.stored.size)) as blocks:
            async for block in blocks:
                await asyncio.to_thread(file.write, block)
        if file.tell() != log.stored.size:
            raise Internal(f"the stored log has {file.tell()} bytes, expected {log.stored.size}")

    async def _append(self, log: TaskLog, last: int, file: BinaryIO) -> StoredLog:
        position = log.stored.end
        messages = stored_messages(self._bus, subjects.LOGS, subjects.log(log.task_id), position.sequence, last)
        async with aclosing(messages):
            async for message in messages:
                folded = fold(position, message)
                position = folded.position
                file.write(to_text(folded.lines))
        return replace(
            log.stored,
            lines=position.line,
            size=file.tell(),
            sequence=position.sequence,
            attempt=position.attempt,
            batch=position.batch,
        )

    async def _purge(self, log: TaskLog) -> bool:
        info = await self._objects.stat(log_key(log.task_id))
        if info is None or info.size < log.stored.size:
            await self._store_again(log)
            return False
        subject = subjects.log(log.task_id)
        newest = await self._bus.last_message(subjects.LOGS, subject)
        if newest is not None and newest[0] > log.stored.sequence and log.archived:
            await self._archives.reopen(log)
        await self._bus.purge(subjects.LOGS, subject, up_to=log.stored.sequence)
        await self._archives.purged(log, log.stored.sequence)
        return True

    async def _store_again(self, log: TaskLog) -> None:
        """For an object that lost its end or was removed while the stream still has every line."""
        if log.stored.purged_sequence:
            raise Internal("the stored log is shorter than it was; its newest lines stay in the stream")
        logger.warning("log of task %s: the stored object is not whole; storing it again", log.task_id)
        await self._archives.reopen(log, from_start=True)


class FirstSeen:
    """Remembers since when something has been the case, on a clock that never jumps."""

    def __init__(self, clock: Callable[[], float], seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds
        self._since: dict[tuple[int, int], float] = {}

    def keep(self, keys: set[tuple[int, int]]) -> None:
        """Starts the time of new keys and forgets those that are no longer named."""
        now = self._clock()
        self._since = {key: self._since.get(key, now) for key in keys}

    def is_old(self, key: tuple[int, int]) -> bool:
        """Whether a key has been there for the set time."""
        return self._clock() - self._since[key] >= self._seconds
