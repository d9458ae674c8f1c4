"""Adapters in the memory of a model: each leaves some day, and none while an answer needs it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from eval_service.generation import models as models_module
from eval_service.generation.models import Base, Limits, LoadedModels
from eval_service.generation.process import ModelProcess
from eval_service.generation.progress import Progress
from servicekit.errors import FailedPrecondition, Unavailable
from tests.support.waiting import eventually

BASE = Base("k", "m", {}, 1)


class Adapters(ModelProcess):
    """What a model's process does with adapters, added when the gate is open; nothing is run."""

    def __init__(self) -> None:
        self.gate, self.added, self.memory, self.at_once = asyncio.Event(), list[str](), 0, 1
        self.ready = asyncio.get_running_loop().create_future()
        self.gone = asyncio.get_running_loop().create_future()
        self.ready.set_result(None)

    @property
    def pid(self) -> int:
        return 0

    async def add(self, variant: str, directory: Path) -> int:
        await self.gate.wait()
        if variant == "bad":
            raise FailedPrecondition("it does not fit")
        self.added.append(variant)
        return 1

    def remove(self, variant: str) -> None:
        self.added.remove(variant)

    def kill(self) -> None:
        if not self.gone.done():
            self.gone.set_result(None)  # type: ignore[arg-type]

    async def wait(self) -> None:
        await self.gone


@pytest.fixture
async def process(monkeypatch: pytest.MonkeyPatch) -> Adapters:
    adapters = Adapters()

    async def start(*_arguments: object) -> Adapters:
        return adapters

    monkeypatch.setattr(ModelProcess, "start", start)
    monkeypatch.setattr(models_module, "MOST_ADAPTERS", 2)
    return adapters


@contextlib.asynccontextmanager
async def loaded_models(folder: Path) -> AsyncIterator[LoadedModels]:
    limits = Limits(memory=1 << 30, idle_seconds=60, at_once=1, queue=20, context=64)
    models = LoadedModels(None, folder, limits)  # type: ignore[arg-type]
    yield models
    await models.close()


async def use(models: LoadedModels, variant: str, until: asyncio.Event) -> None:
    """An answer of a variant that takes until then."""
    async with models.held(BASE, Progress(), variant) as process:
        if not models.holds(BASE.key, variant):
            await models.variant(BASE, process, variant, Path(variant))
        await until.wait()


async def test_an_adapter_whose_caller_leaves_is_registered_and_its_files_stay(
    process: Adapters, tmp_path: Path
) -> None:
    async with loaded_models(tmp_path) as models:
        files, closed, never = contextlib.AsyncExitStack(), asyncio.Event(), asyncio.Event()
        files.callback(closed.set)
        asking = asyncio.create_task(use(models, "a", never))
        await eventually(lambda: any(entry.adding for entry in models._entries.values()))
        asking.cancel()
        models.release(BASE, files)
        await asyncio.wait((asking,))
        assert not closed.is_set(), "the process reads them still"
        process.gate.set()
        await closed.wait()
        assert models.holds(BASE.key, "a")
        never.set()
        for variant in ("b", "c"):
            await use(models, variant, never)
        assert process.added == ["b", "c"], "it never leaves"


async def test_no_adapter_leaves_that_an_answer_needs(process: Adapters, tmp_path: Path) -> None:
    process.gate.set()
    async with loaded_models(tmp_path) as models:
        now, later = asyncio.Event(), asyncio.Event()
        now.set()
        asking = [asyncio.create_task(use(models, variant, later)) for variant in "abc"]
        await eventually(lambda: len(process.added) == 3)
        await use(models, "d", now)
        assert process.added == ["a", "b", "c"]
        later.set()
        await asyncio.gather(*asking)
        assert len(process.added) == 2
        await use(models, "a", now)
        await use(models, "e", now)
        assert process.added[-1] == "e"
        assert "a" in process.added


async def test_an_adapter_that_does_not_fit_is_not_kept(process: Adapters, tmp_path: Path) -> None:
    process.gate.set()
    async with loaded_models(tmp_path) as models:
        with pytest.raises(FailedPrecondition, match="does not fit"):
            await use(models, "bad", process.gate)
        assert not models.holds(BASE.key, "bad")
        assert not models._entries[BASE.key].adding


class SlowToEnd(Adapters):
    """Takes until it is told before it ends."""

    def kill(self) -> None:
        """Asks it to."""


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[SlowToEnd]:
    """Processes in the order of their start."""
    started: list[SlowToEnd] = []

    async def start(*_arguments: object) -> SlowToEnd:
        started.append(SlowToEnd())
        return started[-1]

    monkeypatch.setattr(ModelProcess, "start", start)
    return started


async def ask(models: LoadedModels, key: str) -> None:
    """A short answer of a model that leaves no room for another."""
    async with models.held(Base(key, key, {}, 600 << 20), Progress()):
        pass


def end(processes: list[SlowToEnd]) -> None:
    for process in processes:
        if not process.gone.done():
            process.gone.set_result(None)  # type: ignore[arg-type]


async def test_a_model_waits_for_room_though_another_that_waited_has_left(
    slow: list[SlowToEnd], tmp_path: Path
) -> None:
    async with loaded_models(tmp_path) as models:
        await ask(models, "a")
        second = asyncio.create_task(ask(models, "b"))
        await eventually(lambda: "b" in models._entries)
        second.cancel()
        await asyncio.wait((second,))
        third = asyncio.create_task(ask(models, "c"))
        await asyncio.wait((third,), timeout=0.2)
        assert len(slow) == 1, "the memory of the first is not free"
        end(slow)
        await third
        assert len(slow) == 2
        closing = asyncio.create_task(models.close())
        await eventually(lambda: not models._entries)
        end(slow)
        await closing


async def test_room_that_does_not_come_is_not_waited_for_for_ever(
    slow: list[SlowToEnd], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models_module, "ENDING_SECONDS", 0.1)
    async with loaded_models(tmp_path) as models:
        await ask(models, "a")
        with pytest.raises(Unavailable, match="have not ended within"):
            await ask(models, "b")
        end(slow)
        await ask(models, "b")
        closing = asyncio.create_task(models.close())
        await eventually(lambda: not models._entries)
        end(slow)
        await closing
