"""Calls with a stream of messages: identity, rules of each message, errors, an end in the middle."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from servicekit import errors
from servicekit.errors import Problem
from servicekit.grpc_client import open_channel
from servicekit.grpc_server import running_server
from servicekit.identity import current_principal
from servicekit.settings import ServiceSettings
from tests.support.waiting import eventually
from tunesmith.task.v1 import dataset_service_pb2 as pb
from tunesmith.task.v1 import dataset_service_pb2_grpc

from .conftest import Deployment

HEADER = pb.UploadDatasetRequest(header=pb.DatasetHeader(file_name="a.jsonl"))
DATA = pb.UploadDatasetRequest(data=b"abc")


class Datasets(dataset_service_pb2_grpc.DatasetServiceServicer):
    """Counts bytes, or fails as a test wants; remembers how each upload ended."""

    def __init__(self) -> None:
        self.endings: list[str] = []
        self.failure: Exception | None = None
        self.begun = asyncio.Event()

    async def UploadDataset(self, requests: AsyncIterator[Any], context: Any) -> Any:
        ending = "cut off"
        size = 0
        try:
            async for request in requests:
                self.begun.set()
                if self.failure is not None:
                    raise self.failure
                size += len(request.data)
            ending = "whole"
            return pb.UploadDatasetResponse(dataset=pb.Dataset(owner=current_principal().user, size=size))
        finally:
            self.endings.append(ending)


@pytest.fixture
async def datasets(tmp_path: Path, deployment: Deployment) -> AsyncIterator[tuple[Datasets, Callable[[str], Any]]]:
    """A service that takes uploads, and what makes a stub with a token."""
    servicer = Datasets()
    settings = ServiceSettings(public_key_file=deployment.directory / "public.pem", drain_seconds=0)
    added = (
        dataset_service_pb2_grpc.add_DatasetServiceServicer_to_server,
        servicer,
        "tunesmith.task.v1.DatasetService",
    )
    async with running_server(settings, [added]) as server:
        channels: list[grpc.aio.Channel] = []

        def stub(token: str = "") -> Any:
            channels.append(open_channel(f"127.0.0.1:{server.port}", token or deployment.token("ann")))
            return dataset_service_pb2_grpc.DatasetServiceStub(channels[-1])

        yield servicer, stub
        for channel in channels:
            await channel.close()


Fixture = tuple[Datasets, Callable[..., Any]]


async def messages(*items: Any) -> AsyncIterator[Any]:
    for item in items:
        yield item


async def test_an_upload_carries_the_token(datasets: Fixture) -> None:
    _, stub = datasets
    for requests in (messages(HEADER, DATA, DATA), iter([HEADER, DATA, DATA])):
        dataset = (await stub().UploadDataset(requests)).dataset
        assert (dataset.owner, dataset.size) == ("ann", 6)


async def test_strangers_may_not_upload(datasets: Fixture) -> None:
    servicer, stub = datasets
    with pytest.raises(errors.Unauthenticated):
        await stub("nonsense").UploadDataset(messages(HEADER, DATA))
    assert servicer.endings == []


async def test_rules_hold_for_every_message(datasets: Fixture) -> None:
    _, stub = datasets
    with pytest.raises(errors.InvalidArgument) as caught:
        await stub().UploadDataset(messages(HEADER, pb.UploadDatasetRequest()))
    assert [problem.field for problem in caught.value.problems] == ["part"]


async def test_errors_of_an_upload_cross_the_wire_whole(datasets: Fixture) -> None:
    servicer, stub = datasets
    servicer.failure = errors.ResourceExhausted("full", reason="TOO_LARGE", problems=[Problem("data", "too much")])
    many = messages(HEADER, *[pb.UploadDatasetRequest(data=bytes(1 << 20))] * 30)
    with pytest.raises(errors.ResourceExhausted) as caught:
        await stub().UploadDataset(many)
    assert (caught.value.message, caught.value.reason) == ("full", "TOO_LARGE")
    assert caught.value.problems == servicer.failure.problems


async def test_an_iterator_that_fails_cuts_the_upload_off(datasets: Fixture) -> None:
    servicer, stub = datasets

    async def failing() -> AsyncIterator[Any]:
        yield HEADER
        await servicer.begun.wait()
        raise OSError("the browser went away")

    with pytest.raises(OSError, match="browser"):
        await stub().UploadDataset(failing())
    await eventually(lambda: servicer.endings == ["cut off"])


async def test_a_cancelled_upload_is_cut_off(datasets: Fixture) -> None:
    servicer, stub = datasets

    async def endless() -> AsyncIterator[Any]:
        yield HEADER
        await asyncio.Event().wait()

    uploading = asyncio.ensure_future(stub().UploadDataset(endless()))
    await servicer.begun.wait()
    uploading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await uploading
    await eventually(lambda: servicer.endings == ["cut off"])


async def test_an_upload_has_no_deadline_unless_it_asks_for_one(datasets: Fixture) -> None:
    _, stub = datasets

    async def slow() -> AsyncIterator[Any]:
        yield HEADER
        await asyncio.Event().wait()

    with pytest.raises(errors.DeadlineExceeded):
        await stub().UploadDataset(slow(), timeout=0.3)
