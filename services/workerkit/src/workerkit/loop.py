"""The pull loop: takes tasks off the queue while there are free slots, and gives them back when the service stops."""

import asyncio
import contextlib
import logging
import os
import random
import secrets
import socket
from collections.abc import Coroutine
from typing import Any, TypeVar

from google.protobuf.message import DecodeError
from opentelemetry.trace import SpanKind
from opentelemetry.util.types import AttributeValue

from servicekit import subjects, telemetry
from servicekit.bus import Message
from servicekit.errors import Aborted, DeadlineExceeded, FailedPrecondition, NotFound, TunesmithError, Unavailable
from tunesmith.events.v1 import fact_pb2 as facts
from tunesmith.task.v1 import task_service_pb2, task_service_pb2_grpc
from workerkit.attempt import Attempt, Post
from workerkit.fork_launcher import ForkLauncher
from workerkit.intent import Control, Intent
from workerkit.lease import boot_clock
from workerkit.work import MakeWork

logger = logging.getLogger(__name__)

T = TypeVar("T")

FETCH_SECONDS = 30.0
# Far above what deaths and refusals of a sound task add up to: a message that ends every worker before its claim.
MAX_DELIVERIES = 100
CLAIM_SECONDS = 10.0
RETRY_SECONDS = 2.0
TROUBLE_SECONDS = 10.0
LEAVE_SECONDS = 5.0


def new_worker_id() -> str:
    """A name that no other worker has ever had; it ends in the process id."""
    return f"{socket.gethostname()}-{secrets.token_hex(4)}-{os.getpid()}"


class Worker:
    """Runs up to `slots` attempts at tasks of one kind at a time until it is told to stop.

    kind is the word for it in the queue's subjects: "finetune", "evaluate", "export".
    """

    def __init__(
        self,
        post: Post,
        make_work: MakeWork,
        tasks: "task_service_pb2_grpc.TaskServiceAsyncStub",
        launcher: ForkLauncher,
        *,
        kind: str,
        pool: str,
        slots: int,
        release_seconds: float,
    ) -> None:
        self._post = post
        self._make_work = make_work
        self._tasks = tasks
        self._launcher = launcher
        self._kind = kind
        self._pool = pool
        self._slots = slots
        self._release_seconds = release_seconds
        self._running: dict[asyncio.Task[None], Control] = {}
        self._held: set[str] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Pulls and works until stop is set, then saves and gives back what runs."""
        if not self._slots:
            await stop.wait()
            return
        consumer = self._post.bus.consumer(
            subjects.WORK,
            f"{self._kind}-{self._pool}",
            subjects.work_filter(self._kind, self._pool),
            ack_wait=self._post.redelivery_seconds,
            max_deliver=MAX_DELIVERIES,
        )
        stopping = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                await self._unless(stopping, self._free_slot())
                free = self._slots - len(self._running)
                for message in await self._unless(stopping, consumer.fetch(free, FETCH_SECONDS)) or []:
                    self._begin(message)
        finally:
            stopping.cancel()
            await self._post.bus.release(consumer)
            await self._leave()

    @staticmethod
    async def _unless(stopping: "asyncio.Task[bool]", work: Coroutine[Any, Any, T]) -> T | None:
        """Result of work, None when the worker stops first."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait((task, stopping), return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _free_slot(self) -> None:
        """Waits until another task can be started: a slot is free and children can be started."""
        while len(self._running) >= self._slots:
            await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
        await self._launcher.wait_able()

    def _begin(self, message: Message) -> None:
        control = Control()
        task = asyncio.create_task(self._work_on(message, control))
        self._running[task] = control
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        del self._running[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("working on a task failed", exc_info=error)

    async def _leave(self) -> None:
        """Asks for checkpoints, and after the time for that leaves without."""
        for intent, seconds in ((Intent.RELEASE, self._release_seconds), (Intent.HURRY, LEAVE_SECONDS)):
            for control in self._running.values():
                control.ask(intent)
            if self._running:
                await asyncio.wait(self._running, timeout=seconds)
        tasks = list(self._running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _work_on(self, message: Message, control: Control) -> None:
        try:
            item = facts.WorkItem.FromString(message.data)
            if not item.task_id or item.attempt < 1:
                raise DecodeError("it names no task or no attempt")
        except DecodeError as error:
            await self._bury(message, str(error))
            return
        if item.task_id in self._held:  # delivered again while the broker did not hear from us
            await self._later(message, self._post.redelivery_seconds / 3)
            return
        self._held.add(item.task_id)
        parent = telemetry.extract(message.headers)
        attributes: dict[str, AttributeValue] = {
            "tunesmith.task.id": item.task_id,
            "tunesmith.task.attempt": item.attempt,
        }
        try:
            with telemetry.span(self._kind, kind=SpanKind.CONSUMER, parent=parent, attributes=attributes):
                claimed_at = boot_clock()
                claim = await self._claim(item, message)
                if claim is not None:
                    self._launcher.warm_up()  # while what the child needs is fetched
                    logger.info("task %s: attempt %d is ours", claim.task.id, claim.task.attempt)
                    await Attempt(self._post, self._make_work, claim, message, control, claimed_at).run()
        finally:
            self._held.discard(item.task_id)

    async def _claim(self, item: facts.WorkItem, message: Message) -> task_service_pb2.ClaimTaskResponse | None:
        """The claim, None when the task is not for us now; then the message is dealt with."""
        request = task_service_pb2.ClaimTaskRequest(
            task_id=item.task_id, attempt=item.attempt, worker=self._post.worker
        )
        try:
            return await self._tasks.ClaimTask(request, timeout=CLAIM_SECONDS)
        except (FailedPrecondition, NotFound) as refusal:
            logger.info("task %s, attempt %d: %s", item.task_id, item.attempt, refusal)
            with contextlib.suppress(Unavailable):
                await message.term()
        except Aborted as refusal:
            logger.info("task %s, attempt %d: %s", item.task_id, item.attempt, refusal)
            await self._later(message, self._post.redelivery_seconds / 3)
        except (Unavailable, DeadlineExceeded) as error:
            logger.warning("task %s could not be claimed: %s", item.task_id, error)
            await self._later(message, RETRY_SECONDS)
        except TunesmithError as error:
            logger.error("task %s could not be claimed: %s: %s", item.task_id, error.reason, error)
            await self._later(message, TROUBLE_SECONDS)
        return None

    @staticmethod
    async def _later(message: Message, seconds: float) -> None:
        """Gives a message back for some time; should the broker not hear that, it waits longer by itself."""
        with contextlib.suppress(Unavailable):
            await message.nak(seconds * random.uniform(0.7, 1.0))

    async def _bury(self, message: Message, reason: str) -> None:
        """Keeps a message that is none where an operator sees it, and takes it off the queue."""
        logger.error("a message on %s is not a work item: %s", message.subject, reason)
        with contextlib.suppress(Unavailable):
            await self._post.bus.publish(
                subjects.deadletter(message.subject),
                message.data,
                message_id=f"{subjects.WORK}.{message.sequence}",
                headers={"Tunesmith-Reason": reason},
            )
            await message.term()
