"""The evaluation service as a process: it serves, works on evaluations alone, and takes little memory while idle."""

import signal

import pytest

from servicekit.errors import InvalidArgument
from servicekit.grpc_client import open_channel
from services.workerkit.tests import fixtures
from services.workerkit.tests.desk import Desk, payloads
from services.workerkit.tests.service_process import Running, is_idle, until_healthy
from tests.support.waiting import eventually
from tunesmith.eval.v1 import eval_service_pb2 as pb
from tunesmith.eval.v1 import eval_service_pb2_grpc
from tunesmith.task.v1 import spec_pb2

SCORES = {
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
service = fixtures.service_of("eval_service")


async def test_serves_and_has_no_child_before_one_is_needed(service: Running) -> None:
    process, port = service
    async with open_channel(f"127.0.0.1:{port}") as channel:
        await until_healthy(channel)
        stub = eval_service_pb2_grpc.EvalServiceStub(channel)
        scores = {score.name: score for score in (await stub.ListScores(pb.ListScoresRequest())).scores}
        assert set(scores) == SCORES
        assert all(score.available and len(score.description) > 20 for score in scores.values())
        assert {name for name, score in scores.items() if not score.higher_is_better} == {"perplexity", "confusion"}
        with pytest.raises(InvalidArgument) as caught:
            async for _ in stub.Generate(pb.GenerateRequest(task_id="a", temperature=3.0)):
                pytest.fail("text for a request that is wrong")
        assert {problem.field for problem in caught.value.problems} == {"messages", "temperature"}
    assert is_idle(process)


async def test_works_on_evaluations(service: Running, desk: Desk) -> None:
    trainings = Desk(desk.bus, desk.pool)
    training = await trainings.submit(spec_pb2.FinetuneSpec())
    task_id = await desk.submit(spec_pb2.EvaluateSpec(source_task_id="gone"))
    (failed,) = payloads(await desk.facts_until(task_id, "failed"), "failed")
    assert failed.error.reason == "SOURCE_GONE"
    assert await trainings.waiting_messages(training) == 1
    process, _ = service
    process.send(signal.SIGTERM)
    await eventually(lambda: not process.running)
