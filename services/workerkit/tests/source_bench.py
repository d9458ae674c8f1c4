"""A trained task as other work finds it, with checkpoints in the object store, and workers that go on from it."""

import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from modelkit.paths import AllowedRoots
from servicekit.objects import ObjectStore
from services.workerkit.tests.desk import Desk, RunningWorker, running_worker
from tunesmith.task.v1 import spec_pb2, task_pb2, task_service_pb2
from workerkit.artifacts import Origin, Stored, Upload
from workerkit.fork_launcher import ForkLauncher, running_launcher
from workerkit.work import MakeWork


async def _nothing() -> None:
    return None


class SourceBench(ABC):
    """Makes sources of evaluations or exports, and workers; what those are, each service says."""

    preload: str
    entry: str
    parameters = spec_pb2.LanguageModelParameters(objective=spec_pb2.OBJECTIVE_SUPERVISED, method=spec_pb2.METHOD_LORA)

    def __init__(self, root: Path, store: ObjectStore, base: Path, rows: Sequence[Any]) -> None:
        self.root = root
        self.store = store
        self.base = base
        self.outputs = root / "outputs"
        self.data = root / "data" / "train.jsonl"
        self.data.parent.mkdir(exist_ok=True)
        self.data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.roots = AllowedRoots([self.data.parent, base.parent])

    @abstractmethod
    def make_work(self, launcher: ForkLauncher) -> MakeWork:
        """What the workers do."""

    def finetune(self, **parameters: Any) -> spec_pb2.FinetuneSpec:
        """What the source was asked to do."""
        spec = spec_pb2.FinetuneSpec(
            base_model=str(self.base),
            dataset=spec_pb2.DatasetSource(path=str(self.data)),
            language_model=self.parameters,
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
        """A worker in this process."""
        async with (
            running_launcher(preload=self.preload, entry=self.entry) as launcher,
            running_worker(
                desk, port, nats_url, self.root / "work", launcher, self.make_work(launcher), slots=slots
            ) as worker,
        ):
            yield worker
