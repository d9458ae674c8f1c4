"""Fixtures of exports over real services: a broker, an object store, a task service that knows just enough."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from servicekit.objects import ObjectStore
from services.export_service.tests.bench import Bench
from services.export_service.tests.trained import base_model, trained_adapter
from services.workerkit.tests import fixtures
from tunesmith.task.v1 import task_service_pb2

shared_nats_server, bus, store = fixtures.shared_nats_server, fixtures.bus, fixtures.store
desk, desk_port, office = fixtures.desk_for("export"), fixtures.desk_port, fixtures.office


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model that fits every GGUF type."""
    return base_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the base model."""
    return trained_adapter(base, tmp_path_factory.mktemp("trained") / "checkpoint-8")


@pytest.fixture
async def bench(store: ObjectStore, tmp_path: Path, base: Path) -> AsyncIterator[Bench]:
    await store.prepare()
    yield Bench(tmp_path, store, base)
    await store.close()


@pytest.fixture
async def source(bench: Bench, adapter: Path) -> task_service_pb2.TaskSource:
    """A task with a checkpoint of step 8 and a final model of step 12."""
    found = bench.source()
    await bench.add_checkpoint(found, adapter, 8)
    await bench.finish(found, adapter, 12)
    return found
