"""A trained task as evaluations find it: a tiny base model, a dataset, and checkpoints in the object store."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from eval_service.checks import EvaluationChecks
from eval_service.recipes.entry import run_job
from eval_service.work import EvaluationShop, EvaluationWork
from modelkit import scratch
from modelkit.base_models import BaseModels
from modelkit.datasets import DataCache
from modelkit.paths import AllowedRoots
from servicekit.objects import ObjectStore
from services.eval_service.tests.recipes.conftest import adapter
from services.workerkit.tests.desk import Desk, RunningWorker, running_worker
from tunesmith.task.v1 import spec_pb2, task_pb2, task_service_pb2
from workerkit.artifacts import Origin, Upload
from workerkit.datasets import DatasetChecks
from workerkit.fork_launcher import running_launcher
from workerkit.supervision import Patience

PRELOAD = "eval_service.recipes.preload"
ENTRY = f"{run_job.__module__}:{run_job.__name__}"
LORA = spec_pb2.LanguageModelParameters(
    objective=spec_pb2.OBJECTIVE_SUPERVISED, method=spec_pb2.METHOD_LORA, max_seq_length=128, eval_ratio=0.4
)


async def _nothing() -> None:
    return None


@dataclass
class Bench:
    """Makes sources of evaluations and workers that evaluate them."""

    root: Path
    store: ObjectStore
    checks: EvaluationChecks = field(init=False)
    model: Path = field(init=False)
    data: Path = field(init=False)

    def __post_init__(self) -> None:
        roots = AllowedRoots([self.root / "data"])
        self.data = self.root / "data" / "train.jsonl"
        self.data.parent.mkdir()
        rows = [{"instruction": f"Say {n}", "output": f"{n} is what I say. " * (1 + n % 4)} for n in range(22)]
        self.data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        text = Path(json.__file__).read_text()
        folder = self.root / "data" / "tiny"
        self.model = scratch.build(folder, hidden_size=32, layers=2, vocab_size=320, corpus=[text]).directory
        self.checks = EvaluationChecks(roots, BaseModels(roots), DatasetChecks(DataCache(self.root / "cache")))

    @property
    def outputs(self) -> Path:
        return self.root / "outputs"

    def finetune(self, **parameters: Any) -> spec_pb2.FinetuneSpec:
        """What the source was asked to do."""
        spec = spec_pb2.FinetuneSpec(
            base_model=str(self.model), dataset=spec_pb2.DatasetSource(path=str(self.data)), language_model=LORA
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

    async def add_checkpoint(self, source: task_service_pb2.TaskSource, step: int) -> None:
        """Stores an adapter as a checkpoint of the source, with an optimiser that nobody should fetch."""
        folder = adapter(self.model, self.root / f"checkpoint-{step}", seed=step)
        (folder / "optimizer.pt").write_bytes(b"x" * 1000)
        origin = Origin(source.task_id, 1, 1, "tiny")
        upload = Upload(self.store, origin, f"checkpoint-{step}", folder, step=step, ensure=_nothing)
        stored = await upload.run()
        source.checkpoints.add(step=step, prefix=stored.prefix, manifest_sha256=stored.manifest_sha256)

    @asynccontextmanager
    async def worker(self, desk: Desk, port: int, nats_url: str) -> AsyncIterator[RunningWorker]:
        """A worker in this process whose children evaluate."""
        async with running_launcher(preload=PRELOAD, entry=ENTRY) as launcher:
            shop = EvaluationShop(self.store, launcher, self.checks, self.outputs, Patience(60.0, 10.0))
            make_work = partial(EvaluationWork, shop)
            async with running_worker(desk, port, nats_url, self.root / "work", launcher, make_work) as worker:
                yield worker
