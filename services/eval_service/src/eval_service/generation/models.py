"""The models in memory: loaded when they are asked for; the least recently used is ended when room is needed."""

import asyncio
import contextlib
import logging
import time
import uuid
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval_service.generation.later import MEMORY_BUSY, QUEUE_FULL, later
from eval_service.generation.process import Launcher, ModelProcess
from eval_service.generation.progress import Progress
from eval_service.generation.sizes import in_words
from servicekit.errors import ResourceExhausted, Unavailable

logger = logging.getLogger(__name__)

MOST_ADAPTERS = 16
NEWS_SECONDS = 0.1
NEARLY_DONE = 99.0
ENDING_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Limits:
    """memory is for all models together, in bytes. An idle model is ended after idle_seconds. Of one model at_once
    answers are in the making at the same time, and queue more may wait. context is the longest conversation, in tokens.
    A process that has something to do and does nothing for stall_seconds is ended.
    """

    memory: int
    idle_seconds: float
    at_once: int
    queue: int
    context: int
    stall_seconds: float = 300.0


def require_memory(name: str, needed: int, limits: Limits) -> None:
    """Raises ResourceExhausted when a model of a name needs more bytes than there may be taken in all."""
    if needed > limits.memory:
        raise ResourceExhausted(
            f"{name} needs about {in_words(needed)} of memory and all models together may take "
            f"{in_words(limits.memory)}; raise TUNESMITH_GENERATION_MEMORY_BYTES, or use a smaller or quantized model",
            reason="MODEL_TOO_LARGE",
        )


@dataclass(frozen=True, slots=True)
class Base:
    """A model to load: job is what its process is told, needed an estimate of its memory in bytes."""

    key: str
    name: str
    job: Mapping[str, Any]
    needed: int


@dataclass(slots=True)
class _Entry:
    base: Base
    loading: "asyncio.Task[ModelProcess]"
    progress: Progress
    answering: "Counter[str]" = field(default_factory=Counter)  # users by variant
    adding: "dict[str, asyncio.Task[None]]" = field(default_factory=dict)
    used: float = field(default_factory=time.time)
    expiry: asyncio.TimerHandle | None = None
    adapters: "OrderedDict[str, None]" = field(default_factory=OrderedDict)

    @property
    def users(self) -> int:
        """Answers that are written or waited for."""
        return self.answering.total()

    @property
    def process(self) -> ModelProcess | None:
        """The process once it is there and has loaded the model."""
        loaded = self.loading.done() and not self.loading.cancelled() and not self.loading.exception()
        return self.loading.result() if loaded else None

    @property
    def memory(self) -> int:
        """Bytes that are kept for it."""
        return max(self.base.needed, self.process.memory if self.process else 0)


class LoadedModels:
    """Keeps processes below `directory`, one for each base model, within the limits."""

    def __init__(self, launcher: Launcher, directory: Path, limits: Limits) -> None:
        self._launcher = launcher
        self._directory = directory
        self._limits = limits
        self._entries: dict[str, _Entry] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._releasing: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Ends every process."""
        for entry in list(self._entries.values()):
            self._end(entry)
        await asyncio.gather(*self._ending, return_exceptions=True)
        await asyncio.gather(*self._releasing, return_exceptions=True)

    def expect(self) -> None:
        """A model may be loaded soon."""
        self._launcher.warm_up()

    def memory_of(self, key: str) -> int:
        """Bytes that a model takes, 0 when it is not loaded."""
        entry = self._entries.get(key)
        return entry.process.memory if entry and entry.process else 0

    def holds(self, key: str, variant: str = "") -> bool:
        """Whether a model, or an adapter of it, is in memory."""
        entry = self._entries.get(key)
        return entry is not None and entry.process is not None and (not variant or variant in entry.adapters)

    def admit(self, key: str) -> None:
        """Raises ResourceExhausted when as many answers of a model are asked for as may be."""
        entry = self._entries.get(key)
        at_once = entry.process.at_once if entry and entry.process else self._limits.at_once
        if entry is not None and entry.users >= at_once + self._limits.queue:
            raise later(
                f"{entry.users} answers of this model are being written or waited for; more may not be. Try later",
                QUEUE_FULL,
            )

    @contextlib.asynccontextmanager
    async def held(self, base: Base, progress: Progress, variant: str = "") -> AsyncIterator[ModelProcess]:
        """The process of a model, which is not ended and keeps the variant as long as the context lasts.

        Raises ResourceExhausted when there is no room for it or too many wait, and what loading it raises.
        """
        self.admit(base.key)
        entry = self._entries.get(base.key) or self._load(base)
        entry.answering[variant] += 1
        if entry.expiry is not None:
            entry.expiry.cancel()
        try:
            while not entry.loading.done():
                progress.follow(entry.progress)
                await asyncio.wait((entry.loading,), timeout=NEWS_SECONDS)
                progress.follow(entry.progress)  # the last phase may have been short
            yield await asyncio.shield(entry.loading)
        finally:
            entry.answering[variant] -= 1
            entry.answering += Counter()  # forgets variants that nobody uses
            entry.used = time.time()
            if variant in entry.adapters:
                entry.adapters.move_to_end(variant)
            _drop_adapters(entry)
            self._trim()
            if not entry.users:
                loop = asyncio.get_running_loop()
                entry.expiry = loop.call_later(self._limits.idle_seconds, self._end, entry)

    async def variant(self, base: Base, process: ModelProcess, name: str, directory: Path) -> None:
        """Brings an adapter into the memory of a model that is held; the oldest ones that nobody uses leave.

        It is brought in whether or not the caller waits for that. Raises FailedPrecondition when it does not fit.
        """
        entry = self._entries.get(base.key)
        if entry is None or entry.process is not process:
            await process.add(name, directory)  # the process has ended, which this tells
            return
        adding = entry.adding.get(name)
        if adding is None:
            adding = entry.adding[name] = asyncio.create_task(_add(entry, process, name, directory))
            adding.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(adding)

    def release(self, base: Base, files: contextlib.AsyncExitStack) -> None:
        """Closes what holds a model's files when its process reads none of them any more."""
        entry = self._entries.get(base.key)
        reading = [entry.loading, *entry.adding.values()] if entry else []
        releasing = asyncio.create_task(_released(reading, files))
        self._releasing.add(releasing)
        releasing.add_done_callback(self._releasing.discard)

    def _load(self, base: Base) -> _Entry:
        ended = self._make_room(base)
        progress = Progress("waiting for memory" if ended else "starting process")
        entry = _Entry(base, asyncio.create_task(self._start(base, ended, progress)), progress)
        self._entries[base.key] = entry
        entry.loading.add_done_callback(lambda task: self._started(entry, task))
        return entry

    def _make_room(self, base: Base) -> "list[asyncio.Task[None]]":
        """Ends idle models until a new one fits; what is still ending is returned.

        Raises ResourceExhausted, and ends nothing, when it does not fit.
        """
        limit = self._limits.memory
        require_memory(base.name, base.needed, self._limits)
        busy = sum(entry.memory for entry in self._entries.values() if entry.users)
        if base.needed + busy > limit:
            raise later(
                f"{base.name} needs about {in_words(base.needed)} of memory; models that are answering take "
                f"{in_words(busy)} of {in_words(limit)}. Try again when they have finished",
                MEMORY_BUSY,
            )
        self._trim(base.needed)
        return list(self._ending)

    def _trim(self, wanted: int = 0) -> None:
        """Ends idle models, the least recently used first, until what they take with what is wanted fits."""
        taken = wanted + sum(entry.memory for entry in self._entries.values())
        for entry in sorted(self._entries.values(), key=lambda entry: entry.used):
            if taken <= self._limits.memory:
                return
            if not entry.users:
                taken -= entry.memory
                logger.info("ending the model %s: its memory is needed", entry.base.name)
                self._end(entry)

    async def _start(self, base: Base, ended: "list[asyncio.Task[None]]", progress: Progress) -> ModelProcess:
        if ended:
            # Others wait for them too, so they may not be cancelled with this.
            _, left = await asyncio.wait(ended, timeout=ENDING_SECONDS)
            if left:
                raise Unavailable(
                    f"models that make room for {base.name} have not ended within {ENDING_SECONDS:g} s; try again",
                    reason="MEMORY_NOT_FREE",
                )
            progress.enter("starting process")
        folder = self._directory / uuid.uuid4().hex
        process = await ModelProcess.start(self._launcher, folder, base.job, self._limits.stall_seconds)
        progress.enter("loading model")
        try:
            while not process.ready.done():
                await asyncio.wait((process.ready,), timeout=NEWS_SECONDS)
                progress.percent = min(NEARLY_DONE, 100 * _resident(process.pid) / base.needed)
            await asyncio.shield(process.ready)
        except BaseException:
            process.kill()
            await asyncio.shield(process.wait())
            raise
        return process

    def _started(self, entry: _Entry, task: "asyncio.Task[ModelProcess]") -> None:
        if task.cancelled() or task.exception():
            self._forget(entry)
            return
        logger.info("loaded %s, %s", entry.base.name, in_words(task.result().memory))
        task.result().gone.add_done_callback(lambda _: self._forget(entry))

    def _forget(self, entry: _Entry) -> None:
        if self._entries.get(entry.base.key) is entry:
            del self._entries[entry.base.key]

    def _end(self, entry: _Entry) -> None:
        self._forget(entry)
        if entry.expiry is not None:
            entry.expiry.cancel()
        ending = asyncio.create_task(_ended(entry))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)


async def _add(entry: _Entry, process: ModelProcess, name: str, directory: Path) -> None:
    """Brings an adapter into memory and registers it, so that it leaves some day whoever waits for it."""
    try:
        await process.add(name, directory)
        entry.adapters[name] = None
        _drop_adapters(entry)
    finally:
        del entry.adding[name]


def _drop_adapters(entry: _Entry) -> None:
    """Drops the adapters beyond so many, the least recently used first, and none that an answer needs."""
    idle = [name for name in entry.adapters if not entry.answering[name]]
    for name in idle[: max(0, len(entry.adapters) - MOST_ADAPTERS)]:
        del entry.adapters[name]
        if entry.process is not None:
            entry.process.remove(name)


async def _released(reading: "list[asyncio.Task[Any]]", files: contextlib.AsyncExitStack) -> None:
    if reading:
        await asyncio.wait(reading)
    await files.aclose()


async def _ended(entry: _Entry) -> None:
    """Ends a model, loaded or not, and waits until its memory is free."""
    if entry.process is None:
        entry.loading.cancel()
        await asyncio.wait((entry.loading,))
        return
    entry.process.kill()
    await entry.process.wait()


def _resident(pid: int) -> int:
    """Bytes of a process that are in memory; 0 when it has gone."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = Path(f"/proc/{pid}/statm").read_text().split()
        return int(pages[1]) * 4096
    return 0
