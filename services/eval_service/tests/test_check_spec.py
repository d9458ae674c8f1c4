"""Checks of evaluations are asked over the wire: in turns, and from what the task service knows (fault 56)."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from eval_service.servicer import EvalServicer
from eval_service.setup import NAME
from servicekit.errors import ResourceExhausted
from servicekit.grpc_client import open_channel
from servicekit.grpc_server import running_server
from servicekit.identity import Role
from servicekit.settings import ServiceSettings
from services.eval_service.tests.bench import Bench
from services.workerkit.tests.known_tasks import TaskOffice
from tunesmith.eval.v1 import eval_service_pb2 as pb
from tunesmith.eval.v1 import eval_service_pb2_grpc
from tunesmith.task.v1 import spec_pb2
from workerkit.turns import Limits, Turns

Serving = Callable[..., AbstractAsyncContextManager[Any]]


@pytest.fixture
def serving(bench: Bench, office: TaskOffice) -> Serving:
    """Serves beside a task service; user and role are those of who calls."""

    @asynccontextmanager
    async def serve(user: str = "ann", role: Role = Role.USER, turns: Turns | None = None) -> AsyncIterator[Any]:
        servicer = EvalServicer(office.stub, None, bench.checks, None, turns or Turns())  # type: ignore[arg-type]
        servicers = [(eval_service_pb2_grpc.add_EvalServiceServicer_to_server, servicer, NAME)]
        settings = ServiceSettings(drain_seconds=0, public_key_file=office.public_key_file)
        async with (
            running_server(settings, servicers) as server,
            open_channel(f"127.0.0.1:{server.port}", office.token(user, role)) as channel,
        ):
            yield eval_service_pb2_grpc.EvalServiceStub(channel)

    return serve


async def told(stub: Any, request: pb.CheckSpecRequest) -> dict[str, str]:
    return {item.field: item.message for item in (await stub.CheckSpec(request)).problems}


async def test_problems_are_told_when_the_users_turn_comes(serving: Serving, bench: Bench, office: TaskOffice) -> None:
    source, turns = office.known.add(bench.source()), Turns(Limits(at_once=1, waiting=0))
    spec = spec_pb2.EvaluateSpec(source_task_id="a-training", scores=["beauty"])
    request = pb.CheckSpecRequest(spec=spec, source=source)
    async with serving(turns=turns) as stub:
        async with turns.of("somebody else"):
            with pytest.raises(ResourceExhausted) as caught:
                await stub.CheckSpec(request)
        assert caught.value.reason == "TOO_MANY_CHECKS"
        assert set(await told(stub, request)) == {"evaluate.scores[0]"}


async def test_a_users_word_is_not_taken_for_what_a_task_has_produced(
    serving: Serving, bench: Bench, office: TaskOffice
) -> None:
    """A forged source would let a user read the directories and outputs of others."""
    forged = bench.source()
    request = pb.CheckSpecRequest(spec=spec_pb2.EvaluateSpec(source_task_id="a-training"), source=forged)
    missing = {"evaluate.source_task_id": "there is no task a-training"}
    async with serving() as stub:
        assert await told(stub, request) == missing
        office.known.add(bench.source(bench.finetune(eval_ratio=0.0)))
        assert set(await told(stub, request)) == {"evaluate.split"}
    async with serving("bob") as stub:
        assert await told(stub, request) == missing
    async with serving("worker", Role.SERVICE) as stub:
        assert await told(stub, request) == {}


async def test_a_checkpoint_that_is_not_whole_is_refused_at_submit(
    serving: Serving, bench: Bench, office: TaskOffice
) -> None:
    source = bench.source()
    for step in (10, 20, 30):
        await bench.add_adapter(source, step)
    source.spec.finetune.base_model, source.base_model_prefix = "task:before", "tasks/before/output"
    office.known.add(source)
    whole, truncated, missing = (item.prefix for item in source.checkpoints)
    await bench.store.delete(f"{whole}/optimizer.pt")  # an evaluation does not read it
    await bench.store.put_bytes(f"{truncated}/adapter_model.safetensors", b"short")
    await bench.store.delete(f"{missing}/adapter_config.json")
    request = pb.CheckSpecRequest(spec=spec_pb2.EvaluateSpec(source_task_id="a-training"), source=source)
    async with serving() as stub:
        found = (await stub.CheckSpec(request)).problems
        request.spec.checkpoint_steps.extend([10, 30])
        named = (await stub.CheckSpec(request)).problems
    texts = [(item.field, item.message.partition(" cannot be used: ")) for item in found]
    assert [(field, who, why.partition(":")[0]) for field, (who, _, why) in texts] == [
        (
            "evaluate.source_task_id",
            "the output of task:before",
            "manifest.json is missing from the object store; it may have been removed by now",
        ),
        ("evaluate.checkpoint_steps", "checkpoint 20", "adapter_model.safetensors is truncated"),
        ("evaluate.checkpoint_steps", "checkpoint 30", "adapter_config.json is missing"),
    ]
    assert [item.field for item in named] == ["evaluate.source_task_id", "evaluate.checkpoint_steps[1]"]
