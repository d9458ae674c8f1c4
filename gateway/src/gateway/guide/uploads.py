"""Storing an uploaded file as a dataset, on behalf of its uploader."""

from collections.abc import AsyncIterator
from typing import Any

from gateway.guide.call import Call
from gateway.guide.forms import FormFile
from servicekit.errors import InvalidArgument, Problem
from tunesmith.task.v1 import dataset_service_pb2 as pb

# The field of a form that only uploads.
FILE = "file"


async def store(upload: Any, call: Call, file: FormFile, field: str, *, name: str = "", kind: str = "") -> pb.Dataset:
    """The dataset that a form's file has become; field is the file's name in the form.

    upload is the stub's UploadDataset. Raises InvalidArgument with problems by the names of the form.
    """
    header = pb.DatasetHeader(name=name, type=kind, file_name=file.name)
    try:
        response = await upload(_requests(header, file), metadata=call.metadata)
    except InvalidArgument as error:
        names = {"header.name": "name", "header.type": "type"}
        problems = [Problem(names.get(problem.field, field), problem.message) for problem in error.problems]
        raise InvalidArgument(error.message, reason=error.reason, problems=problems) from None
    dataset: pb.Dataset = response.dataset
    return dataset


async def _requests(header: pb.DatasetHeader, file: FormFile) -> AsyncIterator[pb.UploadDatasetRequest]:
    yield pb.UploadDatasetRequest(header=header)
    async for chunk in file.chunks():
        yield pb.UploadDatasetRequest(data=chunk)
