"""A trained task as evaluations find it: a tiny base model, a dataset, and checkpoints in the object store."""

import json
from functools import partial
from pathlib import Path

from eval_service.checks import EvaluationChecks
from eval_service.setup import ENTRY, PRELOAD
from eval_service.work import EvaluationShop, EvaluationWork
from modelkit import scratch
from modelkit.base_models import BaseModels
from modelkit.datasets import DataCache
from servicekit.objects import ObjectStore
from services.eval_service.tests.recipes.conftest import adapter
from services.workerkit.tests.source_bench import SourceBench
from tunesmith.task.v1 import spec_pb2, task_service_pb2
from workerkit.datasets import DatasetChecks
from workerkit.fork_launcher import ForkLauncher
from workerkit.supervision import Patience
from workerkit.work import MakeWork

ROWS = [{"instruction": f"Say {n}", "output": f"{n} is what I say. " * (1 + n % 4)} for n in range(22)]


class Bench(SourceBench):
    """Makes sources of evaluations, checks, and workers that evaluate."""

    preload, entry = PRELOAD, ENTRY
    parameters = spec_pb2.LanguageModelParameters(
        objective=spec_pb2.OBJECTIVE_SUPERVISED, method=spec_pb2.METHOD_LORA, max_seq_length=128, eval_ratio=0.4
    )

    def __init__(self, root: Path, store: ObjectStore) -> None:
        corpus = [Path(json.__file__).read_text()]
        base = scratch.build(root / "data" / "tiny", hidden_size=32, layers=2, vocab_size=320, corpus=corpus).directory
        super().__init__(root, store, base, ROWS)
        datasets = DatasetChecks(DataCache(root / "cache"))
        self.checks = EvaluationChecks(self.roots, BaseModels(self.roots), datasets, store)

    def make_work(self, launcher: ForkLauncher) -> MakeWork:
        shop = EvaluationShop(self.store, launcher, self.checks, self.outputs, Patience(60.0, 10.0))
        return partial(EvaluationWork, shop)

    async def add_adapter(self, source: task_service_pb2.TaskSource, step: int) -> None:
        """Stores an adapter as a checkpoint of the source, with an optimiser that nobody should fetch."""
        folder = adapter(self.base, self.root / f"checkpoint-{step}", seed=step)
        (folder / "optimizer.pt").write_bytes(b"x" * 1000)
        await self.add_checkpoint(source, folder, step)
