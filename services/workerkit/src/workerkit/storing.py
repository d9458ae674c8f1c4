"""What the work of every kind does with stored files: wait for the store, store a result, put it into its place."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from modelkit.checkpoints import MANIFEST
from servicekit.errors import DeadlineExceeded, ResourceExhausted, TunesmithError, Unavailable
from servicekit.objects import ObjectStore
from workerkit.artifacts import Origin, Upload
from workerkit.endings import AttemptError, Completed, Failed
from workerkit.intent import Control, Intent
from workerkit.lease import Lease
from workerkit.output import place
from workerkit.reporter import Reporter

T = TypeVar("T")

# What goes away by itself.
TRANSIENT = (Unavailable, DeadlineExceeded, ResourceExhausted)
RETRY_SECONDS = 0.5
RETRY_CEILING_SECONDS = 30.0


async def patiently(what: str, work: Callable[[], Awaitable[T]], reporter: Reporter) -> T:
    """Repeats work for as long as the object store cannot be reached. AttemptError for any other trouble."""
    delay = RETRY_SECONDS
    while True:
        try:
            return await work()
        except TRANSIENT as error:
            full = isinstance(error, ResourceExhausted)
            trouble = error.message if full else f"the object store does not answer: {error.message}"
            reporter.log([f"{what} waits, trying again: {trouble}"])
        except (TunesmithError, OSError) as error:
            raise AttemptError(Failed("STORAGE_FAILED", f"{what}: {error}", retryable=True)) from error
        await asyncio.sleep(delay * random.uniform(0.5, 1.0))
        delay = min(2 * delay, RETRY_CEILING_SECONDS)


@dataclass(frozen=True, slots=True)
class ResultStore:
    """Stores what an attempt has made; nothing of it shows under its final name before it is whole.

    what names it in messages: "the model".
    """

    store: ObjectStore
    origin: Origin
    control: Control
    lease: Lease
    reporter: Reporter
    what: str

    async def keep(self, output_dir: Path, target: Path, *, step: int) -> Completed:
        """Stores the files of output_dir as the attempt's output and places them in target.

        AttemptError when either fails, Interrupted when the result is not wanted any more.
        """
        upload = Upload(self.store, self.origin, "output", output_dir, step=step, ensure=self.lease.ensure)
        storing = patiently(self.what, upload.run, self.reporter)
        stored = await self.control.unless(Intent.DISCARD, storing)
        placed = await self.control.unless(Intent.DISCARD, self._place(output_dir, target, stored.manifest))
        self.reporter.progress.percent = 100.0
        self.reporter.progress.eta_seconds = 0.0
        self.reporter.phase("done")
        return Completed(stored.prefix, str(placed), stored.manifest_sha256, self.what)

    async def _place(self, output_dir: Path, target: Path, manifest: bytes) -> Path:
        task_id, attempt = self.origin.task_id, self.origin.attempt
        try:
            (output_dir / MANIFEST).write_bytes(manifest)
            placed = await place(output_dir, target, task_id=task_id, attempt=attempt, ensure=self.lease.ensure)
        except OSError as error:
            message = f"{self.what} could not be written to {target}: {error}; it is kept in the object store"
            raise AttemptError(Failed("OUTPUT_NOT_WRITTEN", message, retryable=True)) from error
        if placed != target:
            self.reporter.log([f"{target} holds other files by now, so {self.what} is in {placed}"])
        return placed
