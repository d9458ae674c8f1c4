"""A worker that trains by script, with everything real around it, but for the task service."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from modelkit.base_models import BaseModels
from modelkit.datasets import DataCache
from modelkit.paths import AllowedRoots
from servicekit.objects import ObjectStore
from services.workerkit.tests.desk import Desk, RunningWorker, running_worker
from trainer_service.checks import SpecChecks
from trainer_service.devices import DevicePool
from trainer_service.estimates.calibration import Calibration
from trainer_service.estimates.disk import Places
from trainer_service.estimates.estimator import Estimator
from trainer_service.worker.training import Training, Workshop
from tunesmith.task.v1 import spec_pb2
from workerkit.datasets import DatasetChecks
from workerkit.fork_launcher import ForkLauncher, running_launcher
from workerkit.supervision import Patience

JOBS = Path(__file__).parent / "jobs"

MakeSpec = Callable[..., spec_pb2.FinetuneSpec]


def open_gate(spec: spec_pb2.FinetuneSpec, name: str) -> None:
    """Lets a child go on that waits for a file."""
    (Path(spec.dataset.path) / name).touch()


@dataclass
class Bench:
    """Starts workers that train by script."""

    desk: Desk
    port: int
    nats_url: str
    store: ObjectStore
    root: Path
    patience: Patience = field(default_factory=lambda: Patience(stall_seconds=30.0, grace_seconds=10.0))
    slots: int = 1
    release_seconds: float = 10.0
    redelivery_seconds: float = 30.0
    preload: str = "light_preload"
    entry: str = "training_jobs:run"
    estimator: Estimator = field(init=False)

    def __post_init__(self) -> None:
        places = Places(self.root / "work", self.outputs, self.root / "objects")
        self.estimator = Estimator(places, Calibration(self.root / "calibration.json"))

    @property
    def outputs(self) -> Path:
        return self.root / "outputs"

    @asynccontextmanager
    async def worker(
        self, store: ObjectStore | None = None, *, extend_every: float | None = None
    ) -> AsyncIterator[RunningWorker]:
        """A worker in this process, stopped at the end of the block; extend_every is how often it tells the queue."""
        roots = AllowedRoots([self.root / "data", self.outputs])
        async with (
            running_launcher(preload=self.preload, entry=self.entry) as launcher,
            running_worker(
                self.desk,
                self.port,
                self.nats_url,
                self.root / "work",
                launcher,
                partial(Training, self._shop(store or self.store, launcher, roots)),
                slots=self.slots,
                release_seconds=self.release_seconds,
                redelivery_seconds=self.redelivery_seconds,
                extend_every=extend_every,
            ) as worker,
        ):
            yield worker

    def _shop(self, store: ObjectStore, launcher: ForkLauncher, roots: AllowedRoots) -> Workshop:
        checks = SpecChecks(roots, BaseModels(roots), DatasetChecks(DataCache(self.root / "data-cache")))
        return Workshop(store, launcher, checks, self.estimator, DevicePool(), self.outputs, self.patience)
