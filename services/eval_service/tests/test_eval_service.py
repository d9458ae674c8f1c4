"""The evaluation service over a real gRPC server: what it describes, and how it refuses the rest."""

from collections.abc import AsyncIterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from eval_service.settings import EvalSettings
from eval_service.setup import NAME, servicers
from servicekit.errors import InvalidArgument, Unimplemented
from servicekit.grpc_client import open_channel
from servicekit.grpc_server import running_server
from tunesmith.eval.v1 import eval_service_pb2 as pb
from tunesmith.eval.v1 import eval_service_pb2_grpc
from tunesmith.task.v1 import spec_pb2


@pytest.fixture
async def channel() -> AsyncIterator[grpc.aio.Channel]:
    async with (
        running_server(EvalSettings(port=0, drain_seconds=0), servicers()) as server,
        open_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        yield channel


async def test_reports_healthy(channel: grpc.aio.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    for name in ("", NAME):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_describes_every_score_and_promises_none(channel: grpc.aio.Channel) -> None:
    stub = eval_service_pb2_grpc.EvalServiceStub(channel)
    scores = {score.name: score for score in (await stub.ListScores(pb.ListScoresRequest())).scores}
    assert set(scores) == {
        "perplexity",
        "semantic_similarity",
        "coherence",
        "coverage",
        "exact_match",
        "token_f1",
        "accuracy",
        "f1",
        "confusion",
    }
    assert not any(score.available for score in scores.values())
    assert all(len(score.description) > 20 for score in scores.values())
    assert {name for name, score in scores.items() if not score.higher_is_better} == {"perplexity", "confusion"}


@pytest.mark.parametrize(
    ("method", "request_message"),
    [
        ("CreateEvaluation", pb.CreateEvaluationRequest(spec=spec_pb2.EvaluateSpec(source_task_id="a"))),
        ("GetEvaluation", pb.GetEvaluationRequest(task_id="a")),
        ("ListEvaluations", pb.ListEvaluationsRequest()),
    ],
)
async def test_refuses_what_comes_later(channel: grpc.aio.Channel, method: str, request_message: object) -> None:
    stub = eval_service_pb2_grpc.EvalServiceStub(channel)
    with pytest.raises(Unimplemented, match="does not evaluate checkpoints yet") as caught:
        await getattr(stub, method)(request_message)
    assert caught.value.reason == "NOT_IMPLEMENTED"


async def test_refuses_to_generate(channel: grpc.aio.Channel) -> None:
    stub = eval_service_pb2_grpc.EvalServiceStub(channel)
    with pytest.raises(Unimplemented, match="does not generate text from checkpoints yet") as caught:
        async for _ in stub.Generate(pb.GenerateRequest(task_id="a")):
            pytest.fail("text from a version that generates none")
    assert caught.value.reason == "NOT_IMPLEMENTED"


async def test_names_the_bad_field_before_it_refuses(channel: grpc.aio.Channel) -> None:
    stub = eval_service_pb2_grpc.EvalServiceStub(channel)
    with pytest.raises(InvalidArgument) as caught:
        async for _ in stub.Generate(pb.GenerateRequest(task_id="a", temperature=3.0)):
            pytest.fail("text for a request that is wrong")
    assert [problem.field for problem in caught.value.problems] == ["temperature"]
