"""A base model that had to be converted stays in its cache until the export has ended."""

import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from export_service.job import Job
from export_service.work import ExportWork, Workshop
from modelkit.base_models import BaseModels
from modelkit.datasets import DataCache
from modelkit.paths import AllowedRoots
from servicekit.objects import ObjectStore
from services.export_service.tests.bench import Bench
from services.modelkit.tests import chatglm_checkpoints
from services.modelkit.tests.chatglm_checkpoints import checkpoint, configuration, sentencepiece_model
from tunesmith.task.v1 import spec_pb2, task_pb2, task_service_pb2
from workerkit.endings import Failed
from workerkit.intent import Control
from workerkit.launcher import LaunchError
from workerkit.supervision import Patience

__all__ = ["sentencepiece_model"]

BASE_ALONE = spec_pb2.ExportSpec(
    source_task_id="a-training", format=spec_pb2.EXPORT_FORMAT_GGUF_BASE, quantizations=["F16"]
)


class CrowdedMachine:
    """Others fill the cache as the child is to start; then it starts none."""

    def __init__(self, full: DataCache) -> None:
        self._full = full
        self.base: Path | None = None
        self.was_kept = False

    async def start(self, job_dir: Path, env: Mapping[str, str]) -> NoReturn:
        self.base = Job.load(job_dir).base
        assert self.base is not None
        os.utime(self.base, (0, 0))
        self._full.trim()
        self.was_kept = self.base.is_dir()
        raise LaunchError("no process can be started")


@pytest.fixture
async def bench(
    store: ObjectStore, tmp_path: Path, sentencepiece_model: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Bench]:
    monkeypatch.setattr(chatglm_checkpoints, "HIDDEN", 64)  # as wide as its heads
    checkpoint(tmp_path / "models" / "chatglm", sentencepiece_model, configuration())
    yield Bench(tmp_path, store, tmp_path / "models" / "chatglm")
    await store.close()


async def test_a_converted_base_stays_until_the_export_has_ended(bench: Bench, tmp_path: Path) -> None:
    conversions = DataCache(tmp_path / "converted")
    bench.checks.models = BaseModels(AllowedRoots([tmp_path / "models"]), conversions=conversions)
    machine = CrowdedMachine(DataCache(conversions.root, limit_bytes=-1))
    shop = Workshop(bench.store, machine, bench.checks, bench.rows, bench.outputs, Patience(60.0, 10.0))
    task = task_pb2.Task(id="an-export", attempt=1, spec=spec_pb2.TaskSpec(export=BASE_ALONE))
    claim = task_service_pb2.ClaimTaskResponse(task=task, source=bench.source())
    reporter: Any = SimpleNamespace(anew=lambda: None, phase=lambda _: None, log=lambda _: None)
    lease: Any = None  # there is no child to tell of
    work = ExportWork(shop, claim, tmp_path / "work", Control(), lease, reporter)
    ending = await work.run()
    assert isinstance(ending, Failed) and ending.reason == "LAUNCH_FAILED", ending
    assert machine.base is not None and machine.base.is_relative_to(conversions.root)
    assert machine.was_kept
    DataCache(conversions.root, limit_bytes=-1).trim()
    assert not machine.base.exists()
