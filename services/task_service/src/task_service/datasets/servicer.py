"""DatasetService over gRPC: convert, call, convert."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from grpc.aio import Metadata

from servicekit.identity import current_principal
from task_service.convert import timestamp
from task_service.database.models import DatasetRow
from task_service.datasets.queries import Datasets
from task_service.datasets.upload import UploadDataset
from tunesmith.task.v1 import dataset_service_pb2 as pb
from tunesmith.task.v1 import dataset_service_pb2_grpc

Context = Any


@dataclass(frozen=True, slots=True)
class DatasetServicer(dataset_service_pb2_grpc.DatasetServiceServicer):
    """Every method sees the caller's own datasets only; workers and administrators find all."""

    upload: UploadDataset
    datasets: Datasets

    async def UploadDataset(
        self, requests: AsyncIterator[pb.UploadDatasetRequest], context: Context
    ) -> pb.UploadDatasetResponse:
        row = await self.upload(current_principal(), requests, identity(context))
        return pb.UploadDatasetResponse(dataset=dataset_message(row))

    async def GetDataset(self, request: pb.GetDatasetRequest, context: Context) -> pb.GetDatasetResponse:
        row = await self.datasets.get(current_principal(), request.dataset_id)
        return pb.GetDatasetResponse(dataset=dataset_message(row))

    async def ListDatasets(self, request: pb.ListDatasetsRequest, context: Context) -> pb.ListDatasetsResponse:
        rows, token = await self.datasets.page(current_principal(), request)
        return pb.ListDatasetsResponse(datasets=map(dataset_message, rows), next_page_token=token)

    async def DeleteDataset(self, request: pb.DeleteDatasetRequest, context: Context) -> pb.DeleteDatasetResponse:
        await self.datasets.delete(current_principal(), request.dataset_id)
        return pb.DeleteDatasetResponse()


def identity(context: Context) -> Metadata | None:
    """The caller's token, for calls on the caller's behalf; None when nobody shows one."""
    found = [(key, value) for key, value in context.invocation_metadata() or () if key == "authorization"]
    return Metadata(*found) if found else None


def dataset_message(row: DatasetRow) -> pb.Dataset:
    """A dataset as callers see it."""
    return pb.Dataset(
        id=row.id,
        name=row.name,
        owner=row.owner,
        type=row.type,
        size=row.size,
        samples=row.samples,
        sha256=row.sha256,
        create_time=timestamp(row.create_time),
        version=row.version,
        file_name=row.file_name,
        format=row.format,
        problems=row.problems,
        object_key=row.object_key,
    )
