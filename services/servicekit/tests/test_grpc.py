"""A service and its clients over a real connection: identity, validation, errors, health, draining."""

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from servicekit import errors
from servicekit.errors import Problem, TunesmithError
from servicekit.grpc_client import bearer
from servicekit.grpc_server import running_server, token_of, violations
from servicekit.identity import Role, TokenIssuer, generate_private_key
from servicekit.settings import ServiceSettings
from tests.support.ports import free_port
from tunesmith.task.v1 import spec_pb2, task_service_pb2

from .conftest import TASK_ID, TASK_SERVICE, Deployment

REQUEST = task_service_pb2.GetTaskRequest(task_id=TASK_ID)
KINDS = sorted(TunesmithError.__subclasses__(), key=lambda kind: kind.__name__)


async def test_a_caller_is_known_in_the_servicer(deployment: Deployment) -> None:
    stub = await deployment.stub(deployment.token("ann", Role.USER))
    task = (await stub.GetTask(REQUEST)).task
    assert (task.id, task.owner, task.name) == (TASK_ID, "ann", "user")
    on_behalf = await stub.GetTask(REQUEST, metadata=bearer(deployment.token("root", Role.ADMIN)))
    assert (on_behalf.task.owner, on_behalf.task.name) == ("root", "admin")


class Call:
    """A call with metadata."""

    def __init__(self, *metadata: tuple[str, str | bytes]) -> None:
        self._metadata = metadata

    def invocation_metadata(self) -> Any:
        return self._metadata


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_a_token_is_found_whatever_the_case_of_its_scheme(deployment: Deployment, scheme: str) -> None:
    token = deployment.token("ann")
    given = ("authorization", f"{scheme} {token}")
    answer = await (await deployment.stub()).GetTask(REQUEST, metadata=grpc.aio.Metadata(given))
    assert answer.task.owner == "ann"
    context: Any = Call(("user-agent", "x"), given)
    assert token_of(context) == token


def test_what_is_no_bearer_token_is_none() -> None:
    for metadata in (
        (),
        (("authorization", "Basic YTpi"),),
        (("authorization", "Bearer"),),
        (("authorization", b"Bearer x"),),
    ):
        context: Any = Call(*metadata)
        assert token_of(context) == ""


async def test_callers_do_not_mix(deployment: Deployment) -> None:
    stub = await deployment.stub()
    names = [f"user-{number % 7}" for number in range(100)]
    calls = [stub.GetTask(REQUEST, metadata=bearer(deployment.token(name))) for name in names]
    assert [answer.task.owner for answer in await asyncio.gather(*calls)] == names


async def test_strangers_are_turned_away(deployment: Deployment) -> None:
    foreign = TokenIssuer(generate_private_key()).issue("ann", Role.ADMIN, timedelta(minutes=5))
    tokens = {
        "": "TOKEN_MISSING",
        "nonsense": "TOKEN_INVALID",
        foreign: "TOKEN_INVALID",
        deployment.token(lifetime=timedelta(seconds=-5)): "TOKEN_EXPIRED",
    }
    for token, reason in tokens.items():
        stub = await deployment.stub(token)
        for call in (stub.GetTask(REQUEST), anext(aiter(stub.WatchTask(task_service_pb2.WatchTaskRequest())))):
            with pytest.raises(errors.Unauthenticated) as caught:
                await call
            assert caught.value.reason == reason


async def test_a_stream_ends_with_its_callers_token(deployment: Deployment) -> None:
    cancelled = asyncio.Event()

    async def watch(_: Any) -> AsyncIterator[Any]:
        yield task_service_pb2.WatchTaskResponse(cursor="1")
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    deployment.tasks.watch = watch
    stub = await deployment.stub(deployment.token(lifetime=timedelta(seconds=4)))
    watching = aiter(stub.WatchTask(task_service_pb2.WatchTaskRequest(task_id=TASK_ID)))
    assert (await anext(watching)).cursor == "1"
    async with asyncio.timeout(20):
        with pytest.raises(errors.Unauthenticated) as caught:
            await anext(watching)
        assert caught.value.reason == "TOKEN_EXPIRED"
        await cancelled.wait()


async def test_every_problem_of_a_request_is_told(deployment: Deployment) -> None:
    stub = await deployment.stub(deployment.token())
    with pytest.raises(errors.InvalidArgument) as caught:
        await stub.ListTasks(task_service_pb2.ListTasksRequest(page_size=-1, offset=-1))
    assert [problem.field for problem in caught.value.problems] == ["page_size", "offset"]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
async def test_errors_cross_the_wire_whole(deployment: Deployment, kind: type[TunesmithError]) -> None:
    sent = kind("something, Grüße 模型", reason="SPECIAL", problems=[Problem("a.b[0]", "bad")], metadata={"k": "v"})

    async def fail(_: Any) -> Any:
        raise sent

    async def fail_midway(_: Any) -> AsyncIterator[Any]:
        yield task_service_pb2.WatchTaskResponse()
        raise sent

    deployment.tasks.get, deployment.tasks.watch = fail, fail_midway
    stub = await deployment.stub(deployment.token())
    with pytest.raises(kind) as caught:
        await stub.GetTask(REQUEST)
    got = [caught.value]
    watching = aiter(stub.WatchTask(task_service_pb2.WatchTaskRequest(task_id=TASK_ID)))
    await anext(watching)
    with pytest.raises(kind) as caught:
        await anext(watching)
    got.append(caught.value)
    for error in got:
        assert type(error) is kind
        assert (error.message, error.reason, error.metadata) == (sent.message, "SPECIAL", {"k": "v"})
        assert error.problems == sent.problems


async def test_very_many_problems_cross_the_wire(deployment: Deployment) -> None:
    problems = [Problem(f"rows[{number}]", f"line {number}: column output is missing") for number in range(5000)]

    async def fail(_: Any) -> Any:
        raise errors.InvalidArgument(problems=problems)

    deployment.tasks.get = fail
    stub = await deployment.stub(deployment.token())
    with pytest.raises(errors.InvalidArgument) as caught:
        await stub.GetTask(REQUEST)
    *told, last = caught.value.problems
    assert len(told) > 500
    assert told == problems[: len(told)]
    assert last.message == f"and {5000 - len(told)} more problems"
    assert caught.value.reason == "INVALID_ARGUMENT"


async def test_a_defect_is_masked_and_logged_under_its_id(
    deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(_: Any) -> Any:
        raise ValueError("the password is 1234")

    deployment.tasks.get = fail
    stub = await deployment.stub(deployment.token())
    with pytest.raises(errors.Internal) as caught:
        await stub.GetTask(REQUEST)
    assert "1234" not in str(caught.value)
    assert caught.value.metadata["id"] in str(caught.value)
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert caught.value.metadata["id"] in record.getMessage()
    assert record.exc_info is not None
    assert "1234" in str(record.exc_info[1])


async def test_what_is_not_there_is_unimplemented(deployment: Deployment) -> None:
    stub = await deployment.stub(deployment.token())
    with pytest.raises(errors.Unimplemented):
        await stub.StopTask(task_service_pb2.StopTaskRequest(task_id=TASK_ID))


async def test_health_and_reflection(deployment: Deployment) -> None:
    health: Any = health_pb2_grpc.HealthStub(await deployment.channel())
    for name in ("", TASK_SERVICE):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    await deployment.server.serving(False)
    answer = await health.Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    for token, expected in ((deployment.token(), True), (None, False)):
        channel: Any = await deployment.channel(token)
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        metadata = bearer(token) if token else None
        try:
            requests = iter([request] if token else [])  # nobody reads what a stranger sends
            answers = [answer async for answer in stub.ServerReflectionInfo(requests, metadata=metadata)]
            names = {service.name for service in answers[0].list_services_response.service}
            assert expected
            assert {TASK_SERVICE, "grpc.health.v1.Health"} <= names
        except grpc.aio.AioRpcError as error:
            assert not expected
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_running_calls_end_before_the_server_does(deployment: Deployment) -> None:
    entered, leave = asyncio.Event(), asyncio.Event()

    async def slow(request: Any) -> Any:
        entered.set()
        await leave.wait()
        return task_service_pb2.GetTaskResponse()

    deployment.tasks.get = slow
    stub = await deployment.stub(deployment.token())
    running = asyncio.ensure_future(stub.GetTask(REQUEST))
    await entered.wait()
    draining = asyncio.ensure_future(deployment.server.drain(20))
    with pytest.raises(errors.Unavailable):
        await stub.GetTask(REQUEST)
    leave.set()
    assert await running == task_service_pb2.GetTaskResponse()
    await draining


async def test_a_call_has_a_deadline(deployment: Deployment) -> None:
    async def never(_: Any) -> Any:
        await asyncio.Event().wait()

    deployment.tasks.get = never
    stub = await deployment.stub(deployment.token())
    with pytest.raises(errors.DeadlineExceeded):
        await stub.GetTask(REQUEST, timeout=0.2)


async def test_nobody_there_is_unavailable(deployment: Deployment) -> None:
    await deployment.server.drain(0)
    stub = await deployment.stub(deployment.token())
    with pytest.raises(errors.Unavailable):
        await stub.GetTask(REQUEST)


async def test_a_cancelled_stream_ends_in_the_servicer(deployment: Deployment) -> None:
    ended = asyncio.Event()

    async def watch(_: Any) -> AsyncIterator[Any]:
        try:
            while True:
                yield task_service_pb2.WatchTaskResponse()
                await asyncio.sleep(0)
        finally:
            ended.set()

    deployment.tasks.watch = watch
    stub = await deployment.stub(deployment.token())
    call = stub.WatchTask(task_service_pb2.WatchTaskRequest(task_id=TASK_ID))
    async for _ in call:
        break
    call.cancel()
    await asyncio.wait_for(ended.wait(), 5)


async def test_a_taken_port_is_told(deployment: Deployment) -> None:
    settings = ServiceSettings(port=deployment.server.port)
    with pytest.raises(OSError, match=str(deployment.server.port)):
        async with running_server(settings, []):
            pass


async def test_without_a_key_everybody_is_the_local_administrator(deployment: Deployment) -> None:
    await deployment.start(public_key_file=None, port=free_port())
    task = (await (await deployment.stub()).GetTask(REQUEST)).task
    assert (task.owner, task.name) == ("local", "admin")


async def test_what_a_leaving_server_cuts_off_is_unavailable(deployment: Deployment) -> None:
    entered = asyncio.Event()

    async def never(_: Any) -> Any:
        entered.set()
        await asyncio.Event().wait()

    deployment.tasks.get = never
    stub = await deployment.stub(deployment.token())
    running = asyncio.ensure_future(stub.GetTask(REQUEST))
    await entered.wait()
    await deployment.server.drain(0)
    with pytest.raises(errors.Unavailable):
        await running


def test_a_call_that_its_caller_did_not_cancel_may_be_tried_again() -> None:
    nothing = grpc.aio.Metadata()
    cut_off = grpc.aio.AioRpcError(grpc.StatusCode.CANCELLED, nothing, nothing, details="CANCELLED")
    assert isinstance(errors.from_rpc_error(cut_off), errors.Unavailable)


def test_what_is_left_out_must_be_given_and_what_is_wrong_is_told() -> None:
    export = spec_pb2.ExportSpec(checkpoint_step=-1)
    assert violations(export) == [
        Problem("source_task_id", "must be given"),
        Problem("checkpoint_step", "must be greater than or equal to 0"),
        Problem("format", "must be given"),
    ]


def test_of_several_fields_one_must_be_given() -> None:
    request = spec_pb2.TaskSpec(finetune=spec_pb2.FinetuneSpec(base_model="m"))
    modalities = "language_model, image_classifier, object_detector, text_to_image"
    assert violations(request) == [
        Problem("finetune.modality", f"must be given as one of {modalities}"),
        Problem("finetune.dataset", "must be given"),
    ]
