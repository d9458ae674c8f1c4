"""Fixtures of evaluations over real services: a broker, an object store, a task service that knows just enough."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from servicekit.objects import ObjectStore
from services.eval_service.tests.bench import Bench
from services.workerkit.tests import fixtures

shared_nats_server, bus, store = fixtures.shared_nats_server, fixtures.bus, fixtures.store
desk, desk_port, office = fixtures.desk_for("evaluate"), fixtures.desk_port, fixtures.office


@pytest.fixture
async def bench(store: ObjectStore, tmp_path: Path) -> AsyncIterator[Bench]:
    await store.prepare()
    yield Bench(tmp_path, store)
    await store.close()
