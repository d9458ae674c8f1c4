"""A trained task as exports find it: a small base model, a dataset, and checkpoints in the object store."""

from functools import partial
from pathlib import Path

from export_service.checks import ExportChecks
from export_service.disk import Places, free_bytes
from export_service.rows import TrainingRows
from export_service.setup import ENTRY, PRELOAD
from export_service.work import ExportWork, Workshop
from modelkit.base_models import BaseModels
from modelkit.datasets import DataCache
from servicekit.objects import ObjectStore
from services.export_service.tests.trained import ROWS
from services.workerkit.tests.source_bench import SourceBench
from workerkit.datasets import DatasetChecks
from workerkit.fork_launcher import ForkLauncher
from workerkit.supervision import Patience
from workerkit.work import MakeWork


class Bench(SourceBench):
    """Makes sources of exports, checks, and workers that export.

    free is how many bytes the disk says are free, 0 for as many as there are.
    """

    preload, entry = PRELOAD, ENTRY

    def __init__(self, root: Path, store: ObjectStore, base: Path) -> None:
        super().__init__(root, store, base, [{"messages": row} for row in ROWS])
        self.free = 0
        self.rows = TrainingRows(self.roots, DatasetChecks(DataCache(root / "cache")))
        places = Places(root / "work", self.outputs, root / "objects")
        models = BaseModels(self.roots)
        self.checks = ExportChecks(self.roots, models, store, self.rows, places, free=self._free)

    def make_work(self, launcher: ForkLauncher) -> MakeWork:
        shop = Workshop(self.store, launcher, self.checks, self.rows, self.outputs, Patience(60.0, 10.0))
        return partial(ExportWork, shop)

    def _free(self, path: Path) -> int:
        return self.free or free_bytes(path)
