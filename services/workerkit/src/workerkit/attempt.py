"""One claimed task from the queue's message to its acknowledgement: lease, facts and work side by side."""

import asyncio
import contextlib
import logging
import secrets
import shutil
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servicekit import subjects
from servicekit.bus import EventBus, Message
from servicekit.errors import TunesmithError
from tunesmith.task.v1 import task_service_pb2 as task_service
from workerkit.endings import Ending, Failed, Released
from workerkit.intent import Control, Intent, Interrupted
from workerkit.lease import Heartbeat, Lease
from workerkit.reporter import Reporter
from workerkit.spool import Spool
from workerkit.work import MakeWork

logger = logging.getLogger(__name__)

ACK_TRIES = 3
LAST_WORD_SECONDS = 3.0
UNINTERESTING = frozenset({"progressed", "started"})


@dataclass(frozen=True, slots=True)
class Post:
    """A worker's place in the platform: who it is, how it is heard and whom it asks.

    The queue gives a message to another after redelivery_seconds in which it was not extended.
    """

    worker: str
    bus: EventBus
    heartbeat: Heartbeat
    scratch: Path
    redelivery_seconds: float
    extend_seconds: float


class Attempt:
    """Runs a claimed task and acknowledges its message when the end is recorded."""

    def __init__(
        self,
        post: Post,
        make_work: MakeWork,
        claim: task_service.ClaimTaskResponse,
        message: Message,
        control: Control,
        claimed_at: float,
    ) -> None:
        task = claim.task
        self._post = post
        self._task = task
        self._message = message
        self._control = control
        self._folder = post.scratch / f"{task.id}-{task.attempt}"
        self._lease = Lease(
            task_id=task.id,
            attempt=task.attempt,
            worker=post.worker,
            seconds=claim.lease_seconds,
            control=control,
            heartbeat=post.heartbeat,
            message=message,
            extend_every=post.extend_seconds,
            since=claimed_at,
        )
        self._spool = Spool(post.bus, self._folder / "spool", self._lease.ensure)
        self._reporter = Reporter(task.id, task.attempt, self._spool, task.progress)
        self._work = make_work(claim, self._folder, control, self._lease, self._reporter)

    async def run(self) -> None:
        """Brings the attempt to an end, tells it, and acknowledges; or leaves without a word when it is another's."""
        try:
            async with self._company():
                ending = await self._run_work()
                self._reporter.log(str(ending).splitlines())
                self._reporter.end(ending.fact(self._reporter.progress))
                await self._tell()
            await self._settle(ending)
            logger.info("task %s, attempt %d: %s", self._task.id, self._task.attempt, ending)
        except Interrupted:
            logger.warning("task %s, attempt %d was abandoned", self._task.id, self._task.attempt)
        finally:
            self._reporter.close()
            self._spool.discard()
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    async def _run_work(self) -> Ending:
        task = self._task
        self._reporter.log([f"attempt {task.attempt} of task {task.id} on worker {self._post.worker}"])
        try:
            return await self._control.unless(Intent.ABANDON, self._work.run())
        except Interrupted:
            raise
        except Exception:
            error_id = secrets.token_hex(8)
            logger.exception("task %s, attempt %d (error id %s)", task.id, task.attempt, error_id)
            message = f"internal error of the worker; its log has it under id {error_id}"
            return Failed("INTERNAL", message, retryable=True)

    async def _tell(self) -> None:
        """Waits until the broker has stored everything; once the worker is out of time only a moment longer."""
        try:
            await self._control.unless(Intent.HURRY, self._spool.drained())
        except Interrupted:
            try:
                async with asyncio.timeout(LAST_WORD_SECONDS):
                    await self._control.unless(Intent.ABANDON, self._spool.drained())
            except TimeoutError:
                raise Interrupted(Intent.HURRY) from None

    @contextlib.asynccontextmanager
    async def _company(self) -> AsyncIterator[None]:
        """Keeps the lease, sends what is spooled and listens for changes, for as long as the block runs."""
        company = [
            asyncio.create_task(self._essential(self._lease.hold())),
            asyncio.create_task(self._essential(self._spool.pump())),
        ]
        unsubscribe = None
        try:
            with contextlib.suppress(TunesmithError):
                unsubscribe = await self._post.bus.subscribe(subjects.state_changes_of(self._task.id), self._heard)
                self._lease.nudge()  # for what happened before
            yield
        finally:
            for task in company:
                task.cancel()
            await asyncio.gather(*company, return_exceptions=True)
            if unsubscribe is not None:
                await unsubscribe()

    async def _essential(self, work: Coroutine[Any, Any, None]) -> None:
        """Without its lease or its voice an attempt cannot go on."""
        try:
            await work
        except Interrupted:
            self._control.ask(Intent.ABANDON)
        except Exception:
            logger.exception("task %s, attempt %d cannot go on", self._task.id, self._task.attempt)
            self._control.ask(Intent.ABANDON)

    async def _heard(self, subject: str, _: bytes) -> None:
        """Something happened to the task: the next heartbeat tells what it means."""
        if subject.split(".")[3] not in UNINTERESTING:
            self._lease.nudge()

    async def _settle(self, ending: Ending) -> None:
        """Removes the message from the queue, or hands it to another worker."""
        for _ in range(ACK_TRIES):
            try:
                if isinstance(ending, Released):
                    await self._message.nak()
                else:
                    await self._message.ack_sync()
            except TunesmithError as error:
                logger.warning("task %s: its message was not acknowledged: %s", self._task.id, error)
            else:
                return
