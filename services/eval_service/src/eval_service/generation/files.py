"""Stored models brought here: verified against their manifest, and fetched once however many ask for them."""

import asyncio
import contextlib
import hashlib
import shutil
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval_service.generation.later import QUEUE_FULL, later
from eval_service.generation.progress import NEWS_SECONDS, Progress
from eval_service.generation.sizes import in_words
from eval_service.generation.sources import Stored
from eval_service.generation.threads import Threads
from modelkit.checkpoints import FileEntry, Manifest, sha256_of
from modelkit.datasets import DataCache
from servicekit.errors import FailedPrecondition, NotFound, ResourceExhausted
from servicekit.objects import ObjectStore
from workerkit.artifacts import ArtifactDamaged, read_manifest

KNOWN_MANIFESTS = 256
AT_ONCE = 2
MOST_FETCHES = 32


@dataclass(slots=True)
class _Fetch:
    """waiters counts those who want what is fetched; without any it is given up."""

    key: str
    task: "asyncio.Task[Path]"
    progress: Progress
    waiters: int = 0


class StoredFiles:
    """Files of stored directories, kept in a cache under the hash of their contents.

    Few are fetched at once and few wait for that; for each at most most_waiters wait.
    """

    def __init__(self, store: ObjectStore, cache: DataCache, *, most_waiters: int) -> None:
        self._store = store
        self._cache = cache
        self._most_waiters = most_waiters
        self._manifests: OrderedDict[Stored, Manifest] = OrderedDict()
        self._fetches: dict[str, _Fetch] = {}
        self._tasks: set[asyncio.Task[Path]] = set()  # with those that were given up and have not ended yet
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._threads = Threads(AT_ONCE)
        self._coming: dict[Path, int] = {}  # bytes that are yet to come into a folder

    async def close(self) -> None:
        """Gives up what is being fetched."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def manifest(self, stored: Stored) -> Manifest:
        """The manifest of a stored directory.

        Raises FailedPrecondition when it is missing or damaged, and what the store raises.
        """
        if (known := self._manifests.get(stored)) is not None:
            self._manifests.move_to_end(stored)
            return known
        try:
            manifest = await read_manifest(self._store, stored.prefix, stored.manifest_sha256)
        except ArtifactDamaged as error:
            raise _damaged(str(error)) from None
        if stored.manifest_sha256:
            self._manifests[stored] = manifest
            while len(self._manifests) > KNOWN_MANIFESTS:
                self._manifests.popitem(last=False)
        return manifest

    @contextlib.asynccontextmanager
    async def held(self, stored: Stored, wanted: Sequence[FileEntry], progress: Progress) -> AsyncIterator[Path]:
        """A directory with files of a stored one, which stay as long as the context.

        Raises FailedPrecondition when a file is missing or damaged, ResourceExhausted when there is no room for them or
        too many are fetched or waited for, what the store raises, and OSError.
        """
        key = content_key(wanted)
        with contextlib.ExitStack() as held:
            while True:
                folder = self._cache.find(key) or await self._fetched(key, stored, wanted, progress)
                with contextlib.suppress(FileNotFoundError):  # it was removed just now
                    held.enter_context(self._cache.holding(folder))
                    break
            yield folder

    async def _fetched(self, key: str, stored: Stored, wanted: Sequence[FileEntry], progress: Progress) -> Path:
        fetch = self._fetches.get(key) or self._begin(key, stored, wanted)
        if fetch.waiters >= self._most_waiters:
            raise _busy(f"{fetch.waiters} answers wait for this checkpoint to be fetched")
        fetch.waiters += 1
        try:
            while not fetch.task.done():
                progress.follow(fetch.progress)
                await asyncio.wait((fetch.task,), timeout=NEWS_SECONDS)
            return await fetch.task
        finally:
            fetch.waiters -= 1
            if not fetch.waiters and not fetch.task.done():
                fetch.task.cancel()
                self._forget(fetch)

    def _begin(self, key: str, stored: Stored, wanted: Sequence[FileEntry]) -> _Fetch:
        if len(self._fetches) >= MOST_FETCHES:
            raise _busy(f"{len(self._fetches)} checkpoints are being fetched or waited for")
        size, limit = sum(file.size for file in wanted), self._cache.limit_bytes
        if size > limit:
            raise ResourceExhausted(
                f"the checkpoint has {in_words(size)} and the cache of checkpoints may have {in_words(limit)}; raise "
                "TUNESMITH_GENERATION_CACHE_BYTES",
                reason="MODEL_TOO_LARGE",
            )
        progress = Progress("fetching checkpoint")
        task = asyncio.create_task(self._fetch(key, stored, wanted, progress))
        fetch = self._fetches[key] = _Fetch(key, task, progress)
        self._tasks.add(task)
        task.add_done_callback(lambda _: self._ended(fetch))
        return fetch

    def _ended(self, fetch: _Fetch) -> None:
        self._forget(fetch)
        self._tasks.discard(fetch.task)
        if not fetch.task.cancelled():
            fetch.task.exception()  # perhaps nobody waits for it any more

    def _forget(self, fetch: _Fetch) -> None:
        if self._fetches.get(fetch.key) is fetch:
            del self._fetches[fetch.key]

    async def _fetch(self, key: str, stored: Stored, wanted: Sequence[FileEntry], progress: Progress) -> Path:
        total, done = sum(file.size for file in wanted), 0
        async with self._turns:
            with self._cache.incoming() as staging, self._room(staging, total):
                for file in wanted:
                    await self._fetch_file(stored, file, staging / file.path)
                    done += file.size
                    self._coming[staging] = total - done
                    progress.percent = 100 * done / (total or 1)
                return await self._threads.run(self._cache.add, key, staging)

    @contextlib.contextmanager
    def _room(self, staging: Path, size: int) -> Iterator[None]:
        """Room on the disk for what comes into a folder. Raises ResourceExhausted when there is none."""
        free = shutil.disk_usage(staging).free - sum(self._coming.values())
        if size > free:
            raise ResourceExhausted(
                f"the checkpoint has {in_words(size)} and the disk of the cache has {in_words(max(0, free))} left; "
                "free some, or lower TUNESMITH_GENERATION_CACHE_BYTES",
                reason="DISK_FULL",
            )
        self._coming[staging] = size
        try:
            yield
        finally:
            del self._coming[staging]

    async def _fetch_file(self, stored: Stored, file: FileEntry, path: Path) -> None:
        try:
            await self._store.get_file(f"{stored.prefix.rstrip('/')}/{file.path}", path)
        except NotFound:
            raise _damaged(f"{file.path} is missing from the object store") from None
        if await self._threads.run(sha256_of, path) != file.sha256:
            raise _damaged(f"{file.path} is damaged: it does not have the SHA-256 it was saved with")


def content_key(files: Sequence[FileEntry]) -> str:
    """A name for files of these contents, wherever they are stored."""
    found = hashlib.sha256()
    for file in files:
        found.update(f"{file.path}\0{file.sha256}\0".encode())
    return found.hexdigest()[:32]


def _damaged(message: str) -> FailedPrecondition:
    return FailedPrecondition(f"the stored model cannot be used: {message}", reason="STORED_MODEL_DAMAGED")


def _busy(what: str) -> ResourceExhausted:
    return later(f"{what}; more may not be. Try later", QUEUE_FULL)
