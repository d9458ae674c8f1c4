"""Stored models are fetched a few at a time, only for those who wait, and only where there is room."""

import asyncio
import contextlib
import hashlib
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from eval_service.generation import files as files_module
from eval_service.generation.files import AT_ONCE, StoredFiles
from eval_service.generation.models import Limits
from eval_service.generation.preparation import Preparation
from eval_service.generation.progress import Progress
from eval_service.generation.sources import Choice, Stored
from eval_service.generation.threads import Threads
from modelkit.base_models import BaseModels
from modelkit.checkpoints import FileEntry
from modelkit.datasets import DataCache
from modelkit.paths import AllowedRoots
from servicekit.errors import ResourceExhausted
from servicekit.objects.file import FileObjectStore
from tests.support.waiting import eventually
from workerkit.artifacts import Origin, Upload


class SlowStore(FileObjectStore):
    """Files come when the gate is open; begun counts those that were asked for, ended those that came or were not
    waited for."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.gate, self.begun, self.ended = asyncio.Event(), 0, 0

    async def get_file(self, key: str, path: Path) -> None:
        self.begun += 1
        try:
            await self.gate.wait()
            await super().get_file(key, path)
        finally:
            self.ended += 1


@contextlib.asynccontextmanager
async def stored_files(
    folder: Path, count: int, *, limit: int = 1 << 30, most_waiters: int = 8
) -> AsyncIterator[tuple[StoredFiles, SlowStore, list[FileEntry]]]:
    """So many stored files of 100 bytes, each wanted for itself."""
    store = SlowStore(folder / "objects")
    await store.prepare()
    entries = []
    for number in range(count):
        content = bytes([number]) * 100
        await store.put_bytes(f"p/{number}.gguf", content)
        entries.append(FileEntry(f"{number}.gguf", 100, hashlib.sha256(content).hexdigest()))
    files = StoredFiles(store, DataCache(folder / "cache", limit), most_waiters=most_waiters)
    yield files, store, entries
    await files.close()
    await store.close()


async def fetched(files: StoredFiles, entry: FileEntry) -> bytes:
    async with files.held(Stored("p"), [entry], Progress()) as folder:
        return (folder / entry.path).read_bytes()


async def test_a_few_are_fetched_at_once(tmp_path: Path) -> None:
    async with stored_files(tmp_path, 4) as (files, store, entries):
        asking = [asyncio.create_task(fetched(files, entry)) for entry in entries]
        await eventually(lambda: store.begun == AT_ONCE)
        assert len(files._fetches) == 4
        store.gate.set()
        assert [content[0] for content in await asyncio.gather(*asking)] == [0, 1, 2, 3]


async def test_what_nobody_waits_for_is_given_up(tmp_path: Path) -> None:
    async with stored_files(tmp_path, 1) as (files, store, entries):
        asking = [asyncio.create_task(fetched(files, entries[0])) for _ in range(2)]
        await eventually(lambda: store.begun == 1)
        asking[0].cancel()
        await asyncio.wait(asking[:1])
        assert len(files._fetches) == 1
        assert [store.begun, store.ended] == [1, 0], "somebody waits for it still"
        asking[1].cancel()
        await eventually(lambda: store.ended == 1)
        assert not files._fetches
        store.gate.set()
        assert (await fetched(files, entries[0])) == bytes(100), "it can be asked for again"
        assert not any((tmp_path / "cache" / ".incoming").iterdir())


async def test_as_many_wait_as_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "MOST_FETCHES", 1)
    async with stored_files(tmp_path, 2, most_waiters=1) as (files, store, entries):
        asking = asyncio.create_task(fetched(files, entries[0]))
        await eventually(lambda: store.begun == 1)
        with pytest.raises(ResourceExhausted, match="1 answers wait for this checkpoint"):
            await fetched(files, entries[0])
        with pytest.raises(ResourceExhausted, match="1 checkpoints are being fetched"):
            await fetched(files, entries[1])
        store.gate.set()
        assert await asking == bytes(100)


async def test_nothing_is_fetched_without_room(tmp_path: Path) -> None:
    async with stored_files(tmp_path, 1, limit=99) as (files, store, entries):
        with pytest.raises(ResourceExhausted, match="TUNESMITH_GENERATION_CACHE_BYTES"):
            await fetched(files, entries[0])
        assert not store.begun
    async with stored_files(tmp_path / "b", 1, limit=1 << 62) as (files, store, _):
        with pytest.raises(ResourceExhausted, match="the disk of the cache has") as caught:
            await fetched(files, FileEntry("0.gguf", 1 << 60, ""))
        assert caught.value.reason == "DISK_FULL"
        assert not store.begun


async def test_a_model_that_is_too_large_is_not_fetched(tmp_path: Path) -> None:
    store = SlowStore(tmp_path / "objects")
    await store.prepare()
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "m.gguf").write_bytes(bytes(1000))

    async def nothing() -> None:
        return None

    upload = Upload(store, Origin("t", 1, 1, "base"), "output", tmp_path / "output", step=1, ensure=nothing)
    stored = await upload.run()
    files = StoredFiles(store, DataCache(tmp_path / "cache"), most_waiters=1)
    limits = Limits(memory=1000, idle_seconds=1, at_once=1, queue=1, context=64)
    preparation = Preparation(files, BaseModels(AllowedRoots([tmp_path])), limits)
    choice = Choice("t", 1, Stored(stored.prefix, stored.manifest_sha256))
    with pytest.raises(ResourceExhausted) as caught:
        async with preparation.ready(choice, Progress()):
            pytest.fail("it was made ready")
    assert caught.value.reason == "MODEL_TOO_LARGE"
    assert not store.begun
    await store.close()


async def test_work_in_threads_that_is_given_up_while_it_waits_never_begins() -> None:
    threads, gate, begun = Threads(1), threading.Event(), list[int]()
    first = asyncio.create_task(threads.run(gate.wait))
    await eventually(lambda: threads._turns._running.total() == 1)
    second = asyncio.create_task(threads.run(begun.append, 2))
    third = asyncio.create_task(threads.run(begun.append, 3))
    await eventually(lambda: sum(map(len, threads._turns._waiting.values())) == 2)
    second.cancel()
    await asyncio.wait((second,))
    gate.set()
    await asyncio.gather(first, third)
    assert begun == [3]
