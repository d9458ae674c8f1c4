"""Uploads for tests of datasets: what is sent, and what is left of it."""

import io
import json
import tarfile
import zipfile
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import func, select

from services.task_service.tests.harness import Client, Service, language_model_spec
from task_service.database.models import DatasetRow, GarbageRow
from tunesmith.task.v1 import dataset_service_pb2 as pb
from tunesmith.task.v1 import dataset_service_pb2_grpc, spec_pb2

ROWS = b"".join(json.dumps({"instruction": f"n{n}", "output": "\u4f60\u597d"}).encode() + b"\n" for n in range(40))
sqlite_only = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def stub(client: Client) -> Any:
    return dataset_service_pb2_grpc.DatasetServiceStub(client.channel)


async def parts(header: pb.DatasetHeader, data: bytes, size: int = 100) -> AsyncIterator[pb.UploadDatasetRequest]:
    yield pb.UploadDatasetRequest(header=header)
    for start in range(0, len(data), size):
        yield pb.UploadDatasetRequest(data=data[start : start + size])


async def upload(client: Client, data: bytes = ROWS, file_name: str = "rows.jsonl", **header: Any) -> pb.Dataset:
    requests = parts(pb.DatasetHeader(file_name=file_name, **header), data)
    dataset: pb.Dataset = (await stub(client).UploadDataset(requests)).dataset
    return dataset


async def stored(service: Service) -> list[str]:
    return [info.key async for info in service.objects.list("datasets/")]


async def nothing_is_left(service: Service) -> bool:
    """No row, and no object that is not about to be deleted."""
    await service.garbage.collect_once()
    async with service.core.database.sessions() as session:
        rows = await session.scalar(select(func.count()).select_from(DatasetRow))
        planned = await session.scalar(select(func.count()).select_from(GarbageRow))
    return not rows and not planned and await stored(service) == []


def archive(kind: str) -> bytes:
    target = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(target, "w") as packed:
            packed.writestr("train.jsonl", ROWS)
    else:
        with tarfile.open(fileobj=target, mode="w:gz" if kind == "tar.gz" else "w") as packed_tar:
            info = tarfile.TarInfo("train.jsonl")
            info.size = len(ROWS)
            packed_tar.addfile(info, io.BytesIO(ROWS))
    return target.getvalue()


def training_on(dataset_id: str) -> spec_pb2.TaskSpec:
    spec = language_model_spec()
    spec.finetune.dataset.dataset_id = dataset_id
    return spec


async def delete(client: Client, dataset: pb.Dataset) -> None:
    await stub(client).DeleteDataset(pb.DeleteDatasetRequest(dataset_id=dataset.id))
