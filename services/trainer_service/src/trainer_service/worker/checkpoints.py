"""Stores checkpoints in the background, newest first, while training goes on."""

import asyncio
import logging
import random
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from servicekit.objects import ObjectStore
from trainer_service.worker.quota import QuotaGate
from tunesmith.events.v1 import fact_pb2 as facts
from tunesmith.task.v1 import task_pb2 as tasks
from workerkit.artifacts import Origin, Stored, Upload
from workerkit.child_events import CheckpointWritten
from workerkit.intent import Interrupted
from workerkit.reporter import Reporter, timestamp
from workerkit.storing import RETRY_CEILING_SECONDS, RETRY_SECONDS, TRANSIENT

logger = logging.getLogger(__name__)

HOPELESS_TRIES = 5
TOLD_EVERY = 10


@dataclass(slots=True)
class _Pending:
    event: CheckpointWritten
    upload: Upload
    tries: int = 0


class CheckpointStore:
    """Uploads what `add` is given and tells of each with a fact once its manifest is stored.

    Of the local copies only the newest is kept after it was stored. With `limit` above 0, checkpoints that would be
    removed from the store at once, because so many newer ones wait, are not uploaded at all. What the owner's quota
    has no room for is held back.
    """

    def __init__(
        self,
        store: ObjectStore,
        reporter: Reporter,
        origin: Origin,
        *,
        limit: int,
        ensure: Callable[[], Awaitable[None]],
        quota: QuotaGate | None = None,
    ) -> None:
        self._store = store
        self._reporter = reporter
        self._origin = origin
        self._limit = limit
        self._ensure = ensure
        self._quota = quota
        self._held_back: CheckpointWritten | None = None
        self._pending: dict[int, _Pending] = {}
        self._local: dict[int, Path] = {}
        self._news = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.newest_stored = 0

    def add(self, event: CheckpointWritten) -> None:
        """Queues a checkpoint that is whole on disk, or holds it back."""
        if self._quota is None or self._quota.admits(event.step, len(self._pending)):
            self._queue(event)
            return
        self._held_back = event
        self._local[event.step] = event.path
        self._idle.clear()
        self._news.set()

    def keep_held_back(self) -> int:
        """Queues the newest checkpoint after all when it was held back, because the attempt ends with it; its step."""
        event = self._held_back
        if event is None or event.step <= max([*self._pending, self.newest_stored]):
            return 0
        self._local.pop(event.step, None)
        self._queue(event)
        return event.step

    def _queue(self, event: CheckpointWritten) -> None:
        name = f"checkpoint-{event.step}"
        upload = Upload(self._store, self._origin, name, event.path, step=event.step, ensure=self._ensure)
        self._pending[event.step] = _Pending(event, upload)
        for step in sorted(self._pending)[: -self._limit] if self._limit else ():
            self._reporter.log([f"checkpoint-{step} is not stored: newer ones fill save_total_limit"])
            self._local[step] = self._pending.pop(step).event.path
        self._idle.clear()
        self._news.set()

    async def drained(self) -> None:
        """Waits until nothing is left to upload."""
        await self._idle.wait()

    async def run(self) -> None:
        """Uploads until cancelled."""
        delay = RETRY_SECONDS
        while True:
            await self._news.wait()
            if not self._pending:
                self._news.clear()
                await self._tidy()
                if not self._pending:
                    self._idle.set()
                continue
            pending = self._pending[max(self._pending)]
            if await self._try(pending):
                delay = RETRY_SECONDS
            else:
                await asyncio.sleep(delay * random.uniform(0.5, 1.0))
                delay = min(2 * delay, RETRY_CEILING_SECONDS)

    async def _try(self, pending: _Pending) -> bool:
        """One attempt at a checkpoint; whether it is dealt with, for better or worse."""
        step, path = pending.event.step, pending.event.path
        pending.tries += 1
        try:
            stored = await pending.upload.run()
        except TRANSIENT as error:
            if pending.tries % TOLD_EVERY == 1:
                self._reporter.log([f"checkpoint-{step} is not stored yet, trying again: {error.message}"])
            return False
        except Interrupted:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, other checkpoints may fare better
            logger.warning("checkpoint %s: %r", path, error)
            if pending.tries < HOPELESS_TRIES and not isinstance(error, FileNotFoundError):
                return False
            self._reporter.log([f"checkpoint-{step} could not be stored: {error}"])
            self._pending.pop(step, None)
            return True
        self._stored(pending.event, stored)
        await self._tidy()
        return True

    def _stored(self, event: CheckpointWritten, stored: Stored) -> None:
        self._pending.pop(event.step, None)
        if self._quota is not None:
            self._quota.stored()
        self.newest_stored = max(self.newest_stored, event.step)
        checkpoint = tasks.Checkpoint(
            task_id=self._origin.task_id,
            attempt=self._origin.attempt,
            run=self._origin.run,
            step=event.step,
            loss=event.loss,
            prefix=stored.prefix,
            size=stored.size,
            manifest_sha256=stored.manifest_sha256,
            create_time=timestamp(),
        )
        self._reporter.fact(facts.Fact(checkpoint_saved=checkpoint))
        self._reporter.log([f"checkpoint-{event.step} is stored ({stored.size} bytes)"])
        self._local[event.step] = event.path

    async def _tidy(self) -> None:
        """Removes the local copies of what needs no upload any more, but for the newest."""
        for step in [step for step in self._local if step < max(self._local)]:
            await asyncio.to_thread(shutil.rmtree, self._local.pop(step), ignore_errors=True)
