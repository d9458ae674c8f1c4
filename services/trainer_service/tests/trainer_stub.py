"""The trainer's gRPC service over the wire, for tests of what it answers."""

import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from modelkit.base_models import BaseModels
from modelkit.datasets import DataCache
from modelkit.errors import InvalidDataset
from modelkit.errors import Problem as Refusal
from modelkit.paths import AllowedRoots
from servicekit.bus import EventBus
from servicekit.errors import Problem
from servicekit.grpc_client import open_channel
from servicekit.grpc_server import running_server
from servicekit.objects import ObjectStore
from servicekit.settings import ServiceSettings
from services.trainer_service.tests.bench import JOBS
from trainer_service.checks import SpecChecks
from trainer_service.data_questions import DataQuestions
from trainer_service.environment import Environment
from trainer_service.estimates.calibration import Calibration
from trainer_service.estimates.disk import Places
from trainer_service.estimates.estimator import Estimator
from trainer_service.servicer import TrainerServicer
from trainer_service.setup import NAME
from tunesmith.task.v1 import quota_service_pb2, spec_pb2
from tunesmith.trainer.v1 import trainer_service_pb2 as trainer
from tunesmith.trainer.v1 import trainer_service_pb2_grpc
from workerkit.datasets import DatasetChecks
from workerkit.fork_launcher import running_launcher
from workerkit.remote_datasets import RemoteDatasets
from workerkit.turns import Turns

Stub = Any


class Peer:
    """The task service, as far as the environment check and estimates ask for it."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.quota = quota_service_pb2.Quota(monthly_allowance=-1, used=4, remaining=-1)
        self.asked_by: list[Any] = []

    async def ask(self) -> None:
        if self.error is not None:
            raise self.error

    async def get_quota(
        self, request: quota_service_pb2.GetQuotaRequest, *, timeout: float, metadata: Any = None
    ) -> quota_service_pb2.GetQuotaResponse:
        self.asked_by.append(metadata and metadata["authorization"])
        await self.ask()
        return quota_service_pb2.GetQuotaResponse(quota=self.quota)


class Uploads(RemoteDatasets):
    """One uploaded dataset, which nobody but its owner may know of; reading it takes until the gate is open."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.gate = threading.Event()
        self.gate.set()

    def uploaded(self, dataset_id: str, *, field: str, token: str = "") -> Path:
        self.gate.wait()
        if token != "owner":
            raise InvalidDataset(Refusal(field, f"there is no dataset {dataset_id!r}"))
        return self.file


class Unasked(DataQuestions):
    """Has no child look at tokens: the model of these tests has no tokenizer."""

    async def problems(self, *_: object) -> list[Problem]:
        return []


@pytest.fixture
def peer() -> Peer:
    """Stands in for the task service."""
    return Peer()


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    """What stands in for datasets in the object store."""
    return Uploads(tmp_path / "cache" / "upload.jsonl")


@pytest.fixture
def turns() -> Turns:
    """Turns at looking at data; a test may have others."""
    return Turns()


@pytest.fixture
async def stub(
    tmp_path: Path,
    bus: EventBus,
    store: ObjectStore,
    peer: Peer,
    uploads: Uploads,
    turns: Turns,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Stub]:
    """The service over the wire, beneath data/."""
    monkeypatch.setenv("PYTHONPATH", str(JOBS))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    await store.prepare()
    roots = AllowedRoots([tmp_path / "data"])
    models = BaseModels(roots)
    known = DatasetChecks(DataCache(tmp_path / "cache"), uploads, hub_cache=tmp_path / "hub")
    async with running_launcher(preload="light_preload", entry="training_jobs:run") as launcher:
        await launcher.wait_warm()
        environment = Environment(
            launcher=launcher, store=store, bus=bus, task_service=peer.ask, folders={"scratch space": tmp_path / "work"}
        )
        places = Places(tmp_path / "work", tmp_path / "outputs", tmp_path / "objects")
        estimator = Estimator(places, Calibration(tmp_path / "calibration.json"))
        checks = SpecChecks(roots, models, known)
        servicer = TrainerServicer(
            checks, estimator, models, known, environment, Unasked(launcher), turns, peer.get_quota
        )
        servicers = [(trainer_service_pb2_grpc.add_TrainerServiceServicer_to_server, servicer, NAME)]
        async with (
            running_server(ServiceSettings(drain_seconds=0), servicers) as server,
            open_channel(f"127.0.0.1:{server.port}") as channel,
        ):
            yield trainer_service_pb2_grpc.TrainerServiceStub(channel)
    await store.close()


def write(folder: Path, *rows: object) -> spec_pb2.DatasetSource:
    """A directory with a file of these rows or lines."""
    folder.mkdir(exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "train.jsonl").write_text("\n".join(lines))
    return spec_pb2.DatasetSource(path=str(folder))


async def check(stub: Stub, spec: spec_pb2.FinetuneSpec) -> dict[str, str]:
    """The problems of a specification by their fields."""
    answer = await stub.CheckSpec(trainer.CheckSpecRequest(spec=spec_pb2.TaskSpec(finetune=spec)))
    found: dict[str, str] = {}
    for problem in answer.problems:
        found[problem.field] = f"{found.get(problem.field, '')}{problem.message}\n"
    return found
