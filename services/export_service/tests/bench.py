"""A trained task as exports find it: a small base model, a dataset, and checkpoints in the object store."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from export_service.checks import ExportChecks
from export_service.disk import Places, free_bytes
from export_service.rows import TrainingRows
from export_service.work import ExportWork, Workshop
from modelkit.base_models import BaseModels
from modelkit.datasets import DataCache
from modelkit.paths import AllowedRoots
from servicekit.objects import ObjectStore
from services.export_service.tests.trained import ROWS
from services.workerkit.tests.desk import Desk, RunningWorker, running_worker
from tunesmith.task.v1 import spec_pb2, task_pb2, task_service_pb2
from workerkit.artifacts import Origin, Stored, Upload
from workerkit.datasets import DatasetChecks
from workerkit.fork_launcher import running_launcher
from workerkit.supervision import Patience

PRELOAD, ENTRY = "export_service.recipes.preload", "export_service.recipes.entry:run_job"
LORA = spec_pb2.LanguageModelParameters(objective=spec_pb2.OBJECTIVE_SUPERVISED, method=spec_pb2.METHOD_LORA)


async def _nothing() -> None:
    return None


@dataclass
class Bench:
    """Makes sources of exports, checks, and workers that export."""

    root: Path
    store: ObjectStore
    base: Path
    checks: ExportChecks = field(init=False)
    rows: TrainingRows = field(init=False)
    data: Path = field(init=False)
    free: int = 0  # bytes that the disk says are free; 0: as many as there are

    def __post_init__(self) -> None:
        roots = AllowedRoots([self.root / "data", self.base.parent])
        self.data = self.root / "data" / "train.jsonl"
        self.data.parent.mkdir()
        self.data.write_text("".join(json.dumps({"messages": row}) + "\n" for row in ROWS))
        self.rows = TrainingRows(roots, DatasetChecks(DataCache(self.root / "cache")))
        places = Places(self.root / "work", self.outputs, self.root / "objects")
        self.checks = ExportChecks(
            roots, BaseModels(roots), self.store, self.rows, places, free=lambda path: self.free or free_bytes(path)
        )

    @property
    def outputs(self) -> Path:
        return self.root / "outputs"

    def finetune(self, **parameters: Any) -> spec_pb2.FinetuneSpec:
        """What the source was asked to do."""
        spec = spec_pb2.FinetuneSpec(
            base_model=str(self.base), dataset=spec_pb2.DatasetSource(path=str(self.data)), language_model=LORA
        )
        spec.language_model.MergeFrom(spec_pb2.LanguageModelParameters(**parameters))
        return spec

    def source(self, finetune: spec_pb2.FinetuneSpec | None = None) -> task_service_pb2.TaskSource:
        """A completed task without checkpoints."""
        return task_service_pb2.TaskSource(
            task_id="a-training",
            name="a training",
            spec=spec_pb2.TaskSpec(finetune=finetune or self.finetune()),
            state=task_pb2.STATE_COMPLETED,
        )

    async def upload(self, folder: Path, name: str, *, task: str = "a-training", step: int = 0) -> Stored:
        """Stores a directory as a task's."""
        return await Upload(self.store, Origin(task, 1, 1, "tiny"), name, folder, step=step, ensure=_nothing).run()

    async def add_checkpoint(self, source: task_service_pb2.TaskSource, folder: Path, step: int) -> None:
        """Stores a directory as a checkpoint of the source."""
        stored = await self.upload(folder, f"checkpoint-{step}", step=step)
        source.checkpoints.add(step=step, prefix=stored.prefix, manifest_sha256=stored.manifest_sha256)

    async def finish(self, source: task_service_pb2.TaskSource, folder: Path, step: int) -> None:
        """Stores a directory as the final model of the source."""
        stored = await self.upload(folder, "output", step=step)
        source.output.CopyFrom(
            task_service_pb2.TaskOutput(prefix=stored.prefix, manifest_sha256=stored.manifest_sha256, step=step)
        )

    @asynccontextmanager
    async def worker(self, desk: Desk, port: int, nats_url: str, *, slots: int = 1) -> AsyncIterator[RunningWorker]:
        """A worker in this process whose children export."""
        async with running_launcher(preload=PRELOAD, entry=ENTRY) as launcher:
            shop = Workshop(self.store, launcher, self.checks, self.rows, self.outputs, Patience(60.0, 10.0))
            make_work = partial(ExportWork, shop)
            async with running_worker(
                desk, port, nats_url, self.root / "work", launcher, make_work, slots=slots
            ) as worker:
                yield worker
