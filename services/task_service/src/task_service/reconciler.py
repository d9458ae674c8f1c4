"""Compares what the database says with what the queue holds, and puts back what got lost.

Nothing is decided while facts of a task wait to be recorded: a worker may have finished while this service was down.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

from google.protobuf.message import DecodeError
from sqlalchemy import ColumnElement, Exists, exists, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from servicekit import subjects
from servicekit.bus import EventBus
from servicekit.errors import TunesmithError
from task_service.commands.core import Core
from task_service.commands.recorder import Recorder, incomplete_dependencies
from task_service.database import lifecycles
from task_service.database.access import current_time
from task_service.database.models import OUTBOX, TaskDependencyRow, TaskRow
from task_service.database.tasks import TaskRepository
from task_service.domain.lifecycle import HELD, State, dependency_failed, worker_lost
from task_service.events import work_subject
from task_service.facts.consumer import facts_waiting
from tunesmith.events.v1 import fact_pb2

logger = logging.getLogger(__name__)

PAGE = 500
MICROSECONDS = 1_000_000
HOPELESS = (State.FAILED, State.STOPPED)

_Dependency = aliased(TaskRow)


def _depends_on(*conditions: ColumnElement[bool]) -> Exists:
    """Whether the task depends on a visible one for which the conditions hold."""
    return exists().where(
        TaskDependencyRow.task_number == TaskRow.number,
        exists().where(_Dependency.id == TaskDependencyRow.depends_on, _Dependency.delete_time == 0, *conditions),
    )


_ON_ITS_WAY = _Dependency.state.in_((State.PENDING, State.RUNNING, State.STOPPING))
_GONE = exists().where(
    TaskDependencyRow.task_number == TaskRow.number,
    ~exists().where(_Dependency.id == TaskDependencyRow.depends_on, _Dependency.delete_time == 0),
)
_DECIDED = or_(_depends_on(_Dependency.state.in_(HOPELESS)), _GONE, ~_depends_on(_ON_ITS_WAY))


class Silence:
    """How long a value has not changed, on this process's own clock, which no one can put forward."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[str, tuple[object, float]] = {}

    def seconds(self, key: str, value: object) -> float:
        """Seconds since the value of a key was first seen as it is now."""
        known = self._since.get(key)
        if known is None or known[0] != value:
            self._since[key] = (value, self._clock())
            return 0.0
        return self._clock() - known[1]

    def keep(self, keys: Sequence[str]) -> None:
        """Forgets every other key."""
        self._since = {key: self._since[key] for key in keys if key in self._since}


class Reconciler:
    """Run one at a time per database."""

    def __init__(
        self,
        core: Core,
        bus: EventBus,
        *,
        interval: float,
        grace: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._core = core
        self._bus = bus
        self._interval = interval
        self._grace = grace
        self._silence = Silence(clock)
        self._position = 0
        self._work_sequence = -1

    async def run(self) -> None:
        """Reconciles until it is cancelled."""
        while True:
            try:
                await self.reconcile_once()
            except TunesmithError as error:
                logger.warning("reconciling: %s", error.message)
            await asyncio.sleep(self._interval)

    async def reconcile_once(self) -> None:
        """One pass. Raises Unavailable when the database or the broker cannot be used."""
        await self._bus.ensure_streams()
        await self._find_silent_workers()
        await self._find_vanished_messages()
        await self._find_forgotten_dependents()

    async def _rows(self, *conditions: ColumnElement[bool], after: int = 0) -> tuple[int, list[TaskRow]]:
        """The database's time, and a page of visible tasks for which the conditions hold."""
        async with self._core.database.reading() as session:
            now = await current_time(session)
            query = select(TaskRow).where(TaskRow.delete_time == 0, TaskRow.number > after, *conditions)
            return now, list(await session.scalars(query.order_by(TaskRow.number).limit(PAGE)))

    async def _find_silent_workers(self) -> None:
        """Gives up attempts whose lease is over, unless a message in the queue will bring another worker."""
        after, held = 0, []
        while True:
            now, rows = await self._rows(TaskRow.state.in_([int(state) for state in HELD]), after=after)
            for row in rows:
                held.append(row.id)
                silent = self._silence.seconds(row.id, (row.attempt, row.heartbeat_time))
                lease = self._core.policy.lease_seconds
                if silent >= lease and not self._core.policy.lease_is_alive(row.heartbeat_time, now):
                    await self._give_up(row)
            if len(rows) < PAGE:
                break
            after = rows[-1].number
        self._silence.keep(held)

    async def _give_up(self, seen: TaskRow) -> None:
        if await facts_waiting(self._bus, seen.id):
            return
        if seen.state == State.RUNNING and await self._queued_attempt(seen) == seen.dispatch_attempt:
            return

        async def work(session: AsyncSession) -> bool:
            row = (await TaskRepository(session).lock([seen.id])).get(seen.id)
            if row is None or row.delete_time:
                return False
            if (row.attempt, row.heartbeat_time, row.state) != (seen.attempt, seen.heartbeat_time, seen.state):
                return False
            recorder = Recorder(session, self._core.outbox, await current_time(session))
            lifecycle = lifecycles.load(row)
            outcome = lifecycle.lose(worker_lost(row.worker), recorder.now, self._core.policy)
            await recorder.apply(row, lifecycle, outcome)
            return True

        if await self._core.database.transaction(work):
            logger.warning("task %s: attempt %s is lost, worker %s is silent", seen.id, seen.attempt, seen.worker)
            self._core.outbox.wake()

    async def _queued_attempt(self, row: TaskRow) -> int:
        """The attempt that the task's message in the queue names, 0 without one."""
        found = await self._bus.last_message(subjects.WORK, work_subject(row))
        if found is None:
            return 0
        try:
            return fact_pb2.WorkItem.FromString(found[1]).attempt
        except DecodeError:
            return 0

    async def _find_vanished_messages(self) -> None:
        """Dispatches pending tasks again whose message is neither in the queue nor on its way.

        A page each pass, but all of them after a start and after the queue was made anew.
        """
        _, sequence = await self._bus.sequences(subjects.WORK)
        everything = self._work_sequence < 0 or sequence < self._work_sequence
        if everything:
            self._position = 0
        await self._check_page()
        while everything and self._position:
            await self._check_page()
        self._work_sequence = sequence

    async def _check_page(self) -> None:
        ready = (TaskRow.state == State.PENDING) & ~TaskRow.blocked
        now, rows = await self._rows(ready, after=self._position)
        self._position = rows[-1].number if len(rows) == PAGE else 0
        grace = int(self._grace * MICROSECONDS)
        # A time further away than any pause was written under a clock that has been put back since.
        latest = now + int(self._core.policy.backoff_limit * MICROSECONDS) + grace
        for row in rows:
            if now - grace < row.dispatch_time < latest:
                continue
            if await self._queued_attempt(row) != row.dispatch_attempt:
                await self._dispatch_again(row, latest)

    async def _dispatch_again(self, seen: TaskRow, latest: int) -> None:
        async def work(session: AsyncSession) -> bool:
            row = (await TaskRepository(session).lock([seen.id])).get(seen.id)
            if row is None or row.delete_time or row.state != State.PENDING or row.blocked:
                return False
            if (row.dispatch_attempt, row.dispatch_time) != (seen.dispatch_attempt, seen.dispatch_time):
                return False
            on_its_way = select(OUTBOX.c.position).where(OUTBOX.c.subject == work_subject(row)).limit(1)
            if row.dispatch_time < latest and (await session.execute(on_its_way)).first() is not None:
                return False
            await Recorder(session, self._core.outbox, await current_time(session)).announce.dispatch(row, 0.0)
            return True

        if await self._core.database.transaction(work):
            logger.warning("task %s: its message left the queue unclaimed, another is sent", seen.id)
            self._core.outbox.wake()

    async def _find_forgotten_dependents(self) -> None:
        """Decides about waiting tasks whose dependencies have ended; normally that happens with the last end."""
        _, rows = await self._rows((TaskRow.state == State.PENDING) & TaskRow.blocked & _DECIDED)
        for row in rows:
            await self._core.database.transaction(partial(self._decide, task_id=row.id))
        if rows:
            self._core.outbox.wake()

    async def _decide(self, session: AsyncSession, *, task_id: str) -> None:
        row = (await TaskRepository(session).lock([task_id])).get(task_id)
        if row is None or row.delete_time or not row.blocked or row.state != State.PENDING:
            return
        missing = await incomplete_dependencies(session, row.number)
        lifecycle = lifecycles.load(row)
        recorder = Recorder(session, self._core.outbox, await current_time(session))
        if not missing:
            await recorder.apply(row, lifecycle, lifecycle.unblock())
            return
        query = select(TaskRow.id, TaskRow.state).where(TaskRow.id.in_(missing), TaskRow.delete_time == 0)
        states = dict((await session.execute(query)).all())
        for dependency in missing:
            if states.get(dependency) in (None, *HOPELESS):
                failure = dependency_failed(dependency, "did not complete")
                await recorder.apply(row, lifecycle, lifecycle.dependency_failed(failure, recorder.now))
                return
