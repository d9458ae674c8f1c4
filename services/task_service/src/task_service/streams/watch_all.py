"""What happens to all tasks of a caller: a snapshot of each unfinished one, then every event."""

import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from sqlalchemy import select

from servicekit import subjects
from servicekit.bus import EventBus
from servicekit.identity import Principal
from task_service.convert import task_message
from task_service.database.access import Database
from task_service.database.models import TaskRow
from task_service.database.tasks import TaskRepository, visible_to
from task_service.domain.lifecycle import FINAL
from task_service.streams.cursors import format_event_cursor, parse_event_cursor
from task_service.streams.follow import following, reaches, when_available
from task_service.streams.watch import IDLE_SECONDS, Watched, decode, snapshot_of
from tunesmith.task.v1.task_pb2 import Task

logger = logging.getLogger(__name__)

PAGE = 100


@dataclass(frozen=True, slots=True)
class AllTasksWatcher:
    """Watches all tasks of a caller through the EVENTS stream; checks every idle_seconds that it has missed nothing."""

    bus: EventBus
    database: Database
    idle_seconds: float = IDLE_SECONDS

    async def watch(self, principal: Principal, cursor: str = "") -> AsyncGenerator[Watched, None]:
        """Events in order, each with the cursor after it; never ends by itself.

        Begins after the cursor when the stream reaches back to it, otherwise with a snapshot of every unfinished task
        that the caller may see. At most some events are held in memory, however slowly they are taken. Raises
        InvalidArgument for a bad cursor.
        """
        after = parse_event_cursor(cursor)
        if after is not None and reaches(await self.bus.sequences(subjects.EVENTS), after):
            async with aclosing(self._follow(principal, after)) as events:
                async for event in events:
                    yield event
        while True:
            # The position comes first: what happens between the two is told again rather than lost.
            _, position = await when_available(lambda: self.bus.sequences(subjects.EVENTS))
            async with aclosing(self._unfinished(principal)) as tasks:
                async for task in tasks:
                    yield snapshot_of(task), format_event_cursor(position)
            async with aclosing(self._follow(principal, position)) as events:
                async for event in events:
                    yield event

    async def _unfinished(self, principal: Principal) -> AsyncGenerator[Task, None]:
        """The caller's tasks that have not ended, oldest first."""
        number = 0
        while True:
            query = (
                select(TaskRow)
                .where(visible_to(principal), TaskRow.state.not_in(sorted(FINAL)), TaskRow.number > number)
                .order_by(TaskRow.number)
                .limit(PAGE)
            )
            async with self.database.reading() as session:
                rows = list(await session.scalars(query))
                details = await TaskRepository(session).details(rows)
            for item in details:
                yield task_message(item)
            if len(rows) < PAGE:
                return
            number = rows[-1].number

    async def _follow(self, principal: Principal, position: int) -> AsyncGenerator[Watched, None]:
        """Events after a position, until some have left the stream before they were read."""
        checked = time.monotonic()
        async with following(self.bus, subjects.EVENTS, subjects.ALL_EVENTS, position) as follower:
            while True:
                messages = await follower.portion(self.idle_seconds)
                if time.monotonic() - checked >= self.idle_seconds:
                    checked = time.monotonic()
                    sequences = await when_available(lambda: self.bus.sequences(subjects.EVENTS))
                    if not reaches(sequences, position):
                        return
                for message in messages:
                    position = message.sequence
                    event = decode(message.data)
                    if event is None:
                        logger.warning("message %s on %s is not an event", message.sequence, message.subject)
                    elif principal.is_admin or principal.is_service or event.owner == principal.user:
                        yield event, format_event_cursor(position)
