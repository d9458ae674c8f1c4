"""A dataset that is uploaded over gRPC, trained on by its id, and deleted when that is over."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from servicekit.errors import FailedPrecondition, InvalidArgument, NotFound
from servicekit.grpc_client import open_channel
from tests.support.platform import Platform, Workload, wait_for_step
from tunesmith.client import Client
from tunesmith.task.v1 import dataset_service_pb2 as pb
from tunesmith.task.v1 import dataset_service_pb2_grpc
from tunesmith.task.v1.spec_pb2 import METHOD_LORA
from tunesmith.task.v1.task_pb2 import STATE_COMPLETED, STATE_STOPPED
from tunesmith.task.v1.task_service_pb2 import CreateTaskRequest


@pytest.fixture
async def datasets(platform: Platform) -> AsyncIterator[Any]:
    platform.wait_healthy()
    async with open_channel(f"127.0.0.1:{platform.ports()['task-service']}", platform.token()) as channel:
        yield dataset_service_pb2_grpc.DatasetServiceStub(channel)


def parts(data: bytes, file_name: str) -> Iterator[pb.UploadDatasetRequest]:
    yield pb.UploadDatasetRequest(header=pb.DatasetHeader(file_name=file_name))
    for start in range(0, len(data), 1000):
        yield pb.UploadDatasetRequest(data=data[start : start + 1000])


def training_on(workload: Workload, dataset_id: str, steps: int) -> CreateTaskRequest:
    request = workload.request("uploaded data", method=METHOD_LORA, max_steps=steps, save_steps=1000)
    request.spec.finetune.dataset.dataset_id = dataset_id
    return request


async def test_train_on_an_uploaded_dataset(datasets: Any, client: Client, workload: Workload) -> None:
    uploaded = (await datasets.UploadDataset(parts(workload.dataset.read_bytes(), "modules.jsonl"))).dataset
    assert (uploaded.samples, uploaded.format, list(uploaded.problems)) == (96, "instruction", [])
    task_id = client.tasks.create(training_on(workload, uploaded.id, 3)).id
    task = client.tasks.wait(task_id)
    assert task.state == STATE_COMPLETED, task.error
    await datasets.DeleteDataset(pb.DeleteDatasetRequest(dataset_id=uploaded.id))
    with pytest.raises(NotFound):
        await datasets.GetDataset(pb.GetDatasetRequest(dataset_id=uploaded.id))


async def test_a_dataset_stays_while_a_task_trains_on_it(datasets: Any, client: Client, workload: Workload) -> None:
    data = workload.dataset.read_bytes() + b'{"instruction": "More?", "output": "More."}\n'
    uploaded = (await datasets.UploadDataset(parts(data, "more.jsonl"))).dataset
    request = training_on(workload, uploaded.id, 100_000)
    request.spec.finetune.training.save_steps = 1
    request.spec.finetune.training.save_total_limit = 2
    task_id = client.tasks.create(request).id
    wait_for_step(client, task_id, 1)
    with pytest.raises(FailedPrecondition, match=task_id):
        await datasets.DeleteDataset(pb.DeleteDatasetRequest(dataset_id=uploaded.id))
    client.tasks.stop(task_id)
    assert client.tasks.wait(task_id).state == STATE_STOPPED
    await datasets.DeleteDataset(pb.DeleteDatasetRequest(dataset_id=uploaded.id))


async def test_rows_with_problems_are_told_by_line(datasets: Any) -> None:
    data = b'{"instruction": "a", "output": "b"}\nnot json\n{"instruction": "a"}\n'
    uploaded = (await datasets.UploadDataset(parts(data, "bad.jsonl"))).dataset
    assert any("2" in problem for problem in uploaded.problems)
    assert any("3" in problem for problem in uploaded.problems)
    await datasets.DeleteDataset(pb.DeleteDatasetRequest(dataset_id=uploaded.id))
    with pytest.raises(InvalidArgument):
        await datasets.UploadDataset(parts("问题".encode("utf-16"), "bad.jsonl"))
