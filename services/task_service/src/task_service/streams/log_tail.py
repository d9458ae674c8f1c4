"""One client's view of a log as it grows."""

import math
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from servicekit import subjects
from servicekit.bus import EventBus, Message
from servicekit.errors import NotFound
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
from task_service.streams.cursors import LogPosition
from task_service.streams.follow import following, when_available
from task_service.streams.lines import fold
from task_service.streams.stored_lines import read_lines
from tunesmith.task.v1.task_pb2 import LogLine

PORTION_LINES = 1000
Portion = tuple[list[LogLine], str]


@dataclass(frozen=True, slots=True)
class TailTimes:
    """Seconds between looks at the task: while no lines come, and while lines come all the time.

    The latter must be well below the time for which stored lines stay in the stream; that is what makes it certain
    that no line is missed when they leave it.
    """

    idle: float = 1.0
    ending: float = 0.1
    recheck: float = PURGE_AFTER_SECONDS / 4
    final_wait: float = FINAL_WAIT_SECONDS


class LogTail:
    """Reads what is stored, then follows the stream, and goes back when more has been stored than was read."""

    def __init__(
        self,
        bus: EventBus,
        objects: ObjectStore,
        archives: LogArchives,
        times: TailTimes,
        task_id: str,
        position: LogPosition,
    ) -> None:
        self._bus = bus
        self._objects = objects
        self._archives = archives
        self._times = times
        self._task_id = task_id
        self._position = position
        self._first = position.line
        self._final_time = -math.inf
        self._ended_time: float | None = None

    async def run(self, log: TaskLog | None) -> AsyncGenerator[Portion, None]:
        """Portions of lines, each with the cursor after it, until the log has ended or the task is gone."""
        while log is not None:
            async with aclosing(self._stored(log)) as portions:
                async for portion in portions:
                    yield portion
            await self._start_live(log.stored)
            if await self._finished(log):
                return
            async with aclosing(self._live()) as portions:
                async for portion in portions:
                    yield portion
            log = await self._archives.get(self._task_id)

    async def _stored(self, log: TaskLog) -> AsyncGenerator[Portion, None]:
        line = max(self._first, self._position.line)
        try:
            async with aclosing(read_lines(self._objects, log_key(log.task_id), log.stored, line)) as portions:
                async for lines in portions:
                    line += len(lines)
                    self._position = log.stored.end if line == log.stored.lines else LogPosition(line)
                    yield lines, str(self._position)
        except NotFound:
            if await self._archives.get(self._task_id) is not None:
                raise

    async def _start_live(self, stored: StoredLog) -> None:
        """Goes on in the stream where the cursor says, or counts from the end of what is stored."""
        _, last = await when_available(lambda: self._bus.sequences(subjects.LOGS))
        if self._position.line < stored.lines or not stored.sequence < self._position.sequence <= last:
            self._position = stored.end

    async def _live(self) -> AsyncGenerator[Portion, None]:
        """Follows the stream until the log has ended, more of it is stored than was read, or the stream was lost."""
        checked = time.monotonic()
        subject = subjects.log(self._task_id)
        async with following(self._bus, subjects.LOGS, subject, self._position.sequence) as follower:
            while True:
                messages = await follower.portion(self._patience())
                due = time.monotonic() - checked >= self._times.recheck
                if due:
                    checked = time.monotonic()
                    _, last = await when_available(lambda: self._bus.sequences(subjects.LOGS))
                    if last < self._position.sequence:
                        return
                if due or not messages:
                    log = await self._archives.get(self._task_id)
                    # Lines may have left the stream between the last message and these: the object has them.
                    if log is None or log.stored.sequence > self._position.sequence:
                        return
                    if not messages and await self._finished(log):
                        return
                for portion in self._portions(messages):
                    yield portion

    def _patience(self) -> float:
        """Seconds to wait for lines before looking at the task; fewer just after the last batch of an attempt."""
        ending = time.monotonic() - self._final_time < self._times.final_wait
        return self._times.ending if ending else self._times.idle

    def _portions(self, messages: Sequence[Message]) -> Iterator[Portion]:
        lines: list[LogLine] = []
        for message in messages:
            folded = fold(self._position, message)
            known = max(0, self._first - self._position.line)
            self._position = folded.position
            lines += folded.lines[known:]
            if folded.ended_attempt:
                self._final_time = time.monotonic()
            elif folded.lines:
                self._final_time = -math.inf
            if len(lines) >= PORTION_LINES:
                yield lines, str(self._position)
                lines = []
        if lines:
            yield lines, str(self._position)

    async def _finished(self, log: TaskLog) -> bool:
        """Whether nothing more will come. Waits some time for the last lines of a worker that died."""
        if not log.ended:
            self._ended_time = None
            return False
        newest = await when_available(lambda: self._bus.last_message(subjects.LOGS, subjects.log(self._task_id)))
        if newest is not None and newest[0] > self._position.sequence:
            return False
        if log.archived or is_complete(log, newest):
            return True
        if self._ended_time is None:
            self._ended_time = time.monotonic()
        return time.monotonic() - self._ended_time >= self._times.final_wait
