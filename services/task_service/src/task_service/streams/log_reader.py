"""What clients see of a task's log: parts of it, and its lines as they come."""

import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing

from servicekit import subjects
from servicekit.bus import EventBus
from servicekit.errors import ResourceExhausted
from servicekit.identity import Principal
from servicekit.objects import ObjectStore
from task_service.streams.archives import LogArchives, TaskLog, log_key
from task_service.streams.cursors import LogPosition
from task_service.streams.follow import stored_messages
from task_service.streams.lines import Folded, fold
from task_service.streams.log_index import LogIndex
from task_service.streams.log_tail import LogTail, TailTimes
from task_service.streams.stored_lines import read_lines
from tunesmith.task.v1.task_pb2 import LogLine

MAX_ANSWER_BYTES = 24 * 1024 * 1024


class LogReader:
    """Reads logs wherever they lie: what is stored comes from the object store, the rest from the stream."""

    def __init__(
        self, bus: EventBus, objects: ObjectStore, archives: LogArchives, times: TailTimes | None = None
    ) -> None:
        self._bus = bus
        self._objects = objects
        self._archives = archives
        self._times = times or TailTimes()
        self._index = LogIndex()

    async def read(
        self, principal: Principal, task_id: str, *, tail: int = 0, offset: int = 0
    ) -> tuple[list[LogLine], int]:
        """Lines after the first offset ones, of those the last tail ones (0: all), and the number of lines in all.

        Raises NotFound, and ResourceExhausted when the lines are too many for one answer.
        """
        log = await self._archives.visible(principal, task_id)
        newest = await self._bus.last_message(subjects.LOGS, subjects.log(task_id))
        last = newest[0] if newest else 0
        total = await self._count(log, last)
        lines: list[LogLine] = []
        size = 0
        async with aclosing(self._from(log, max(offset, total - tail if tail else 0), last)) as portions:
            async for portion in portions:
                lines += portion
                size += sum(line.ByteSize() for line in portion)
                if size > MAX_ANSWER_BYTES:
                    raise ResourceExhausted(
                        f"the log has {total} lines, too many for one answer: ask for the last ones, or tail it",
                        reason="LOG_TOO_LONG",
                        metadata={"total_lines": str(total)},
                    )
        return lines, total

    async def tail(
        self, principal: Principal, task_id: str, cursor: str = ""
    ) -> AsyncGenerator[tuple[list[LogLine], str], None]:
        """Lines after a cursor as they come, each portion with the cursor after it; ends with the task's log.

        Raises InvalidArgument for a bad cursor, and NotFound. At most some portions are held in memory, however slowly
        they are taken.
        """
        position = LogPosition.parse(cursor)
        log = await self._archives.visible(principal, task_id)
        tail = LogTail(self._bus, self._objects, self._archives, self._times, task_id, position)
        async with aclosing(tail.run(log)) as portions:
            async for portion in portions:
                yield portion

    async def _count(self, log: TaskLog, last: int) -> int:
        """Lines of the whole log up to the stream's message last."""
        start = self._index.nearest(log.task_id, sys.maxsize, log.stored.end, last)
        line = start.line
        async with aclosing(self._live(log, start, last)) as portions:
            async for folded in portions:
                line = folded.position.line
        return line

    async def _from(self, log: TaskLog, first: int, last: int) -> AsyncGenerator[list[LogLine], None]:
        """Lines from number first on, up to the stream's message last."""
        async with aclosing(read_lines(self._objects, log_key(log.task_id), log.stored, first)) as stored:
            async for lines in stored:
                yield lines
        start = self._index.nearest(log.task_id, first, log.stored.end, last)
        async with aclosing(self._live(log, start, last)) as portions:
            async for folded in portions:
                begin = folded.position.line - len(folded.lines)
                yield folded.lines[max(0, first - begin) :]

    async def _live(self, log: TaskLog, position: LogPosition, last: int) -> AsyncGenerator[Folded, None]:
        subject = subjects.log(log.task_id)
        async with aclosing(stored_messages(self._bus, subjects.LOGS, subject, position.sequence, last)) as messages:
            async for message in messages:
                folded = fold(position, message)
                position = folded.position
                self._index.add(log.task_id, position)
                yield folded
