"""Fixtures of a worker under test."""

import json
import secrets
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from servicekit.bus import EventBus
from servicekit.grpc_server import running_server
from servicekit.objects import ObjectStore, open_object_store
from servicekit.settings import ServiceSettings
from services.trainer_service.tests.bench import JOBS, NAME, Bench, Desk, MakeSpec
from tests.support.nats import NatsServer
from tunesmith.task.v1 import spec_pb2, task_service_pb2_grpc


@pytest.fixture(scope="session")
def shared_nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A nats-server for these tests alone: they read the facts that elsewhere the task service consumes."""
    with NatsServer(tmp_path_factory.mktemp("trainer-nats")) as server:
        yield server


@pytest.fixture
async def bus(shared_nats_server: NatsServer) -> AsyncIterator[EventBus]:
    bus = await EventBus.connect(shared_nats_server.url, name="desk")
    await bus.ensure_streams()
    yield bus
    await bus.close()


@pytest.fixture
def desk(bus: EventBus) -> Desk:
    return Desk(bus, f"pool-{secrets.token_hex(4)}")


@pytest.fixture
async def desk_port(desk: Desk) -> AsyncIterator[int]:
    servicers = [(task_service_pb2_grpc.add_TaskServiceServicer_to_server, desk, NAME)]
    async with running_server(ServiceSettings(drain_seconds=0), servicers) as server:
        yield server.port


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_object_store(f"file://{tmp_path}/objects")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The smallest directory that passes for a language model."""
    folder = tmp_path / "data" / "model"
    folder.mkdir(parents=True)
    config = {"model_type": "llama", "hidden_size": 8, "max_position_embeddings": 4096}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    header = json.dumps({"weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    header = header.ljust((len(header) + 7) // 8 * 8)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 8)
    return folder


@pytest.fixture
def make_spec(tmp_path: Path, model: Path) -> MakeSpec:
    """A specification whose child follows a script."""

    def make(script: dict[str, Any], **more: Any) -> spec_pb2.FinetuneSpec:
        folder = tmp_path / "data" / f"dataset-{secrets.token_hex(4)}"
        folder.mkdir()
        (folder / "train.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
        (folder / "script.json").write_text(json.dumps({"steps": 4, **script}))
        fields: dict[str, Any] = {
            "base_model": str(model),
            "dataset": spec_pb2.DatasetSource(path=str(folder)),
            "language_model": spec_pb2.LanguageModelParameters(method=spec_pb2.METHOD_FULL),
        }
        return spec_pb2.FinetuneSpec(**(fields | more))

    return make


@pytest.fixture
async def bench(
    desk: Desk,
    desk_port: int,
    shared_nats_server: NatsServer,
    store: ObjectStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Bench]:
    monkeypatch.setenv("PYTHONPATH", str(JOBS))
    await store.prepare()
    yield Bench(desk, desk_port, shared_nats_server.url, store, tmp_path)
    await store.close()
