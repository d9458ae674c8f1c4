"""What happens to a task, as subscribers see it: a snapshot, then every event."""

import logging
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from servicekit import subjects
from servicekit.bus import EventBus
from servicekit.errors import NotFound
from servicekit.identity import Principal
from task_service.convert import task_message
from task_service.database.access import Database
from task_service.database.tasks import TaskRepository
from task_service.domain.lifecycle import FINAL, State
from task_service.streams.cursors import format_event_cursor, parse_event_cursor
from task_service.streams.follow import following, reaches, when_available
from tunesmith.task.v1.event_pb2 import TaskEvent
from tunesmith.task.v1.task_pb2 import Task

logger = logging.getLogger(__name__)

ENDS = frozenset({"task.completed", "task.failed", "task.stopped"})
DELETED = "task.deleted"
SNAPSHOT = "task.snapshot"
IDLE_SECONDS = 20.0

Watched = tuple[TaskEvent, str]


@dataclass(frozen=True, slots=True)
class TaskWatcher:
    """Watches tasks through the EVENTS stream. Looks at a silent task every idle_seconds."""

    bus: EventBus
    database: Database
    idle_seconds: float = IDLE_SECONDS

    async def watch(self, principal: Principal, task_id: str, cursor: str = "") -> AsyncGenerator[Watched, None]:
        """Events of a task in order, each with the cursor after it, until it has ended or is deleted.

        Begins after the cursor when the stream reaches back to it, otherwise with a snapshot of now. At most some
        events are held in memory, however slowly they are taken. Raises InvalidArgument for a bad cursor, NotFound.
        """
        after = parse_event_cursor(cursor)
        async with aclosing(Watch(self, principal, task_id).run(after)) as events:
            async for event in events:
                yield event


class Watch:
    """One client's view of one task."""

    def __init__(self, watcher: TaskWatcher, principal: Principal, task_id: str) -> None:
        self._bus = watcher.bus
        self._database = watcher.database
        self._idle_seconds = watcher.idle_seconds
        self._principal = principal
        self._task_id = task_id
        self._position = 0
        self._ended = False

    async def run(self, after: int | None) -> AsyncGenerator[Watched, None]:
        """Events after a sequence, or a snapshot and what follows it. Raises NotFound."""
        task = await self._load()
        resumes = after is not None and reaches(await self._bus.sequences(subjects.EVENTS), after)
        if after is not None and resumes:
            self._position = after
            self._ended = await self._was_over(task)
        while not self._ended:
            if not resumes:
                snapshot = await self._snapshot()
                if snapshot is None:
                    return
                yield snapshot, format_event_cursor(self._position)
                if has_ended(snapshot.task):
                    return
            async with aclosing(self._follow()) as events:
                async for event in events:
                    yield event
            resumes = False

    async def _was_over(self, task: Task) -> bool:
        """Whether the client has seen the task's end already."""
        newest = await self._newest_change()
        if not has_ended(task) or newest is None or newest[0] > self._position:
            return False
        event = decode(newest[1])
        return event is not None and event.type in ENDS and event.task.run == task.run

    async def _snapshot(self) -> TaskEvent | None:
        """The task as it is now, None when it is gone.

        The position comes first: what happens between the two is told again rather than lost.
        """
        _, self._position = await when_available(lambda: self._bus.sequences(subjects.EVENTS))
        task = await self._find()
        return None if task is None else snapshot_of(task)

    async def _follow(self) -> AsyncGenerator[Watched, None]:
        """Events as they come, until the end of the task or until the stream alone cannot tell what happened."""
        checked = time.monotonic()
        subject = subjects.events_of(self._task_id)
        async with following(self._bus, subjects.EVENTS, subject, self._position) as follower:
            while True:
                messages = await follower.portion(self._idle_seconds)
                if time.monotonic() - checked >= self._idle_seconds:
                    checked = time.monotonic()
                    if await self._missed(silent=not messages):
                        return
                for message in messages:
                    self._position = message.sequence
                    event = decode(message.data)
                    if event is None:
                        logger.warning("message %s on %s is not an event", message.sequence, message.subject)
                        continue
                    yield event, format_event_cursor(message.sequence)
                    if event.type == DELETED or (event.type in ENDS and await self._is_the_end(event)):
                        self._ended = True
                        return

    async def _missed(self, silent: bool) -> bool:
        """Whether events left the stream before they were read, the task's last one among them perhaps."""
        if not reaches(await when_available(lambda: self._bus.sequences(subjects.EVENTS)), self._position):
            return True
        task = await self._find() if silent else None
        if not silent or (task is not None and not has_ended(task)):
            return False
        newest = await when_available(self._newest_change)
        return newest is None or newest[0] <= self._position

    async def _is_the_end(self, event: TaskEvent) -> bool:
        """Whether the task was not resumed since; of a task that is gone the deletion is still to be told."""
        task = await self._find()
        return task is not None and has_ended(task) and task.run == event.task.run

    async def _newest_change(self) -> tuple[int, bytes] | None:
        return await self._bus.last_message(subjects.EVENTS, subjects.state_changes_of(self._task_id))

    async def _find(self) -> Task | None:
        try:
            return await self._load()
        except NotFound:
            return None

    async def _load(self) -> Task:
        async with self._database.reading() as session:
            tasks = TaskRepository(session)
            (details,) = await tasks.details([await tasks.get(self._principal, self._task_id)])
        return task_message(details)


def snapshot_of(task: Task) -> TaskEvent:
    """The event that shows a task as it is now."""
    event = TaskEvent(id=secrets.token_hex(16), type=SNAPSHOT, task_id=task.id, owner=task.owner, task=task)
    event.time.GetCurrentTime()
    return event


def has_ended(task: Task) -> bool:
    """Whether only a user's resume can start it again."""
    return State(task.state) in FINAL


def decode(data: bytes) -> TaskEvent | None:
    """The event in a message, None when it is none."""
    try:
        return TaskEvent.FromString(data)
    except DecodeError:
        return None
