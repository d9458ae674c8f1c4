"""The lease of an attempt: renewed in time, and known to be held before anything leaves the worker."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from servicekit.errors import Aborted, FailedPrecondition, NotFound, TunesmithError
from tunesmith.task.v1 import task_service_pb2 as task_service
from workerkit.intent import Control, Intent, Interrupted

logger = logging.getLogger(__name__)

RENEWALS_PER_LEASE = 3
RETRY_SECONDS = 0.5
CALL_SECONDS = 5.0

INTENTS = {
    task_service.DIRECTIVE_STOP_AND_SAVE: Intent.STOP_AND_SAVE,
    task_service.DIRECTIVE_STOP_AND_DISCARD: Intent.DISCARD,
    task_service.DIRECTIVE_ABANDON: Intent.ABANDON,
}
LOST = (NotFound, FailedPrecondition, Aborted)

# Sends a heartbeat with a deadline in seconds.
Heartbeat = Callable[[task_service.HeartbeatTaskRequest, float], Awaitable[task_service.HeartbeatTaskResponse]]
# Hears the answer to a heartbeat that was sent at a time of the lease's clock.
Heard = Callable[[task_service.HeartbeatTaskResponse, float], None]


class Extendable(Protocol):
    """A queue message whose redelivery can be put off."""

    async def in_progress(self) -> None: ...


def boot_clock() -> float:
    """Seconds since boot; goes on while the process, or the machine, sleeps, whatever happens to the wall clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _nothing_heard(_: task_service.HeartbeatTaskResponse, sent: float) -> None:
    """For work that wants no more of heartbeats than the lease does."""


class Lease:
    """Keeps the task service convinced that this worker holds the attempt, and passes on what it wants.

    The lease counts from when a heartbeat that was answered had been sent. When that is longer ago than the lease
    lasts (the worker was paused, or cut off), another worker may have the task: `ensure` then asks first.
    `pid` is told with each heartbeat; `heard` takes in each answer.
    """

    def __init__(
        self,
        *,
        task_id: str,
        attempt: int,
        worker: str,
        seconds: float,
        control: Control,
        heartbeat: Heartbeat,
        message: Extendable,
        extend_every: float,
        since: float | None = None,
        clock: Callable[[], float] = boot_clock,
    ) -> None:
        self.pid = 0
        self.heard: Heard = _nothing_heard
        self._identity = (task_id, attempt, worker)
        self._seconds = seconds
        self._interval = min(seconds / RENEWALS_PER_LEASE, extend_every)
        self._control = control
        self._heartbeat = heartbeat
        self._message = message
        self._clock = clock
        self._confirmed = clock() if since is None else since
        self._nudged = asyncio.Event()
        self._renewing = asyncio.Lock()

    @property
    def doubtful(self) -> bool:
        """Whether another worker may hold the task by now."""
        return self._clock() - self._confirmed >= self._seconds

    def nudge(self) -> None:
        """Has the next heartbeat sent at once."""
        self._nudged.set()

    async def hold(self) -> None:
        """Renews until cancelled or the attempt is lost."""
        while self._control.intent < Intent.ABANDON:
            try:
                async with asyncio.timeout(self._interval):
                    await self._nudged.wait()
            except TimeoutError:
                pass
            self._nudged.clear()
            await self.renew()
            if self._control.intent < Intent.ABANDON:
                await self._extend()

    async def ensure(self) -> None:
        """Returns once the lease is known to be held. Raises Interrupted when the attempt is another's."""
        while True:
            if self._control.intent is Intent.ABANDON:
                raise Interrupted(Intent.ABANDON)
            if not self.doubtful:
                return
            if not await self.renew():
                await asyncio.sleep(RETRY_SECONDS)

    async def renew(self) -> bool:
        """Sends a heartbeat and asks for what its answer wants; whether it was answered."""
        async with self._renewing:
            if self._control.intent is Intent.ABANDON:
                return True
            sent = self._clock()
            task_id, attempt, worker = self._identity
            request = task_service.HeartbeatTaskRequest(task_id=task_id, attempt=attempt, worker=worker, pid=self.pid)
            try:
                answer = await self._heartbeat(request, min(CALL_SECONDS, max(self._interval, RETRY_SECONDS)))
            except LOST as error:
                logger.warning("task %s, attempt %d is no longer ours: %s", task_id, attempt, error)
                self._control.ask(Intent.ABANDON)
                return True
            except TunesmithError as error:
                logger.warning("heartbeat of task %s failed, work goes on: %s", task_id, error)
                return False
            self._confirmed = sent
            self.heard(answer, sent)
            self._control.ask(INTENTS.get(answer.directive, Intent.GO_ON))
            return True

    async def _extend(self) -> None:
        try:
            await self._message.in_progress()
        except TunesmithError as error:
            logger.debug("the queue's message could not be extended: %s", error)
