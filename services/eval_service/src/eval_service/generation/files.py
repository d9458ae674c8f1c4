"""Stored models brought here: verified against their manifest, and fetched once however many ask for them."""

import asyncio
import contextlib
import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval_service.generation.progress import NEWS_SECONDS, Progress
from eval_service.generation.sources import Stored
from modelkit.checkpoints import MANIFEST, FileEntry, Manifest, sha256_of
from modelkit.datasets import DataCache
from modelkit.errors import InvalidCheckpoint
from servicekit.errors import FailedPrecondition, NotFound
from servicekit.objects import ObjectStore

KNOWN_MANIFESTS = 256


@dataclass(frozen=True, slots=True)
class _Fetch:
    task: "asyncio.Task[Path]"
    progress: Progress


class StoredFiles:
    """Files of stored directories, kept in a cache under the hash of their contents."""

    def __init__(self, store: ObjectStore, cache: DataCache) -> None:
        self._store = store
        self._cache = cache
        self._manifests: OrderedDict[Stored, Manifest] = OrderedDict()
        self._fetches: dict[str, _Fetch] = {}

    async def close(self) -> None:
        """Gives up what is being fetched."""
        tasks = [fetch.task for fetch in self._fetches.values()]
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
        manifest = await self._read_manifest(stored)
        if stored.manifest_sha256:
            self._manifests[stored] = manifest
            while len(self._manifests) > KNOWN_MANIFESTS:
                self._manifests.popitem(last=False)
        return manifest

    @contextlib.asynccontextmanager
    async def held(self, stored: Stored, wanted: Sequence[FileEntry], progress: Progress) -> AsyncIterator[Path]:
        """A directory with files of a stored one, which stay as long as the context.

        Raises FailedPrecondition when a file is missing or damaged, what the store raises, and OSError.
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
        if key not in self._fetches:
            shared = Progress("fetching checkpoint")
            task = asyncio.create_task(self._fetch(key, stored, wanted, shared))
            self._fetches[key] = _Fetch(task, shared)
            task.add_done_callback(lambda _: self._fetches.pop(key, None))
        fetch = self._fetches[key]
        while not fetch.task.done():
            progress.follow(fetch.progress)
            await asyncio.wait((fetch.task,), timeout=NEWS_SECONDS)
        return await fetch.task

    async def _fetch(self, key: str, stored: Stored, wanted: Sequence[FileEntry], progress: Progress) -> Path:
        total, done = sum(file.size for file in wanted) or 1, 0
        with self._cache.incoming() as staging:
            for file in wanted:
                await self._fetch_file(stored, file, staging / file.path)
                done += file.size
                progress.percent = 100 * done / total
            return await asyncio.to_thread(self._cache.add, key, staging)

    async def _fetch_file(self, stored: Stored, file: FileEntry, path: Path) -> None:
        try:
            await self._store.get_file(f"{stored.prefix.rstrip('/')}/{file.path}", path)
        except NotFound:
            raise _damaged(f"{file.path} is missing from the object store") from None
        if await asyncio.to_thread(sha256_of, path) != file.sha256:
            raise _damaged(f"{file.path} is damaged: it does not have the SHA-256 it was saved with")

    async def _read_manifest(self, stored: Stored) -> Manifest:
        try:
            content = await self._store.get_bytes(f"{stored.prefix.rstrip('/')}/{MANIFEST}")
            if stored.manifest_sha256 and hashlib.sha256(content).hexdigest() != stored.manifest_sha256:
                raise _damaged(f"{MANIFEST} is damaged: it does not have the SHA-256 that was recorded")
            return Manifest.from_json(content)
        except NotFound:
            raise _damaged(f"{MANIFEST} is missing from the object store; it may have been removed by now") from None
        except InvalidCheckpoint as error:
            raise _damaged(str(error)) from error


def content_key(files: Sequence[FileEntry]) -> str:
    """A name for files of these contents, wherever they are stored."""
    found = hashlib.sha256()
    for file in files:
        found.update(f"{file.path}\0{file.sha256}\0".encode())
    return found.hexdigest()[:32]


def _damaged(message: str) -> FailedPrecondition:
    return FailedPrecondition(f"the stored model cannot be used: {message}", reason="STORED_MODEL_DAMAGED")
