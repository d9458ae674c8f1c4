"""Checks of evaluations are asked over the wire, in turns (fault 56)."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from eval_service.servicer import EvalServicer
from eval_service.setup import NAME
from servicekit.errors import ResourceExhausted
from servicekit.grpc_client import open_channel
from servicekit.grpc_server import running_server
from servicekit.objects import ObjectStore
from servicekit.settings import ServiceSettings
from services.eval_service.tests.bench import Bench
from tunesmith.eval.v1 import eval_service_pb2 as pb
from tunesmith.eval.v1 import eval_service_pb2_grpc
from tunesmith.task.v1 import spec_pb2
from workerkit.turns import Limits, Turns


@pytest.fixture
async def bench(store: ObjectStore, tmp_path: Path) -> AsyncIterator[Bench]:
    yield Bench(tmp_path, store)
    await store.close()


@pytest.fixture
def turns() -> Turns:
    return Turns(Limits(at_once=1, waiting=0))


@pytest.fixture
async def stub(bench: Bench, turns: Turns) -> AsyncIterator[Any]:
    servicer = EvalServicer(None, bench.checks, None, turns)  # type: ignore[arg-type]
    servicers = [(eval_service_pb2_grpc.add_EvalServiceServicer_to_server, servicer, NAME)]
    async with (
        running_server(ServiceSettings(drain_seconds=0), servicers) as server,
        open_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        yield eval_service_pb2_grpc.EvalServiceStub(channel)


async def test_problems_are_told_when_the_users_turn_comes(stub: Any, bench: Bench, turns: Turns) -> None:
    spec = spec_pb2.EvaluateSpec(source_task_id="a-training", scores=["beauty"])
    request = pb.CheckSpecRequest(spec=spec, source=bench.source())
    async with turns.of("somebody else"):
        with pytest.raises(ResourceExhausted) as told:
            await stub.CheckSpec(request)
    assert told.value.reason == "TOO_MANY_CHECKS"
    assert [item.field for item in (await stub.CheckSpec(request)).problems] == ["evaluate.scores[0]"]
