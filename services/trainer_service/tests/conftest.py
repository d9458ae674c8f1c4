"""Fixtures of a worker under test."""

import json
import secrets
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from servicekit.objects import ObjectStore
from services.trainer_service.tests.bench import JOBS, Bench, MakeSpec
from services.workerkit.tests import fixtures
from services.workerkit.tests.desk import Desk
from tests.support.nats import NatsServer
from tunesmith.task.v1 import spec_pb2

shared_nats_server, bus, store = fixtures.shared_nats_server, fixtures.bus, fixtures.store
desk, desk_port = fixtures.desk, fixtures.desk_port


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
