"""Exports as clients see them: tasks of the task service, and what their stored results say."""

from collections.abc import AsyncIterator

from export_service.downloads import file_pieces
from export_service.results import RESULT, Result
from servicekit.objects import ObjectStore
from tunesmith.export.v1 import export_service_pb2 as pb
from tunesmith.task.v1 import spec_pb2, task_pb2, task_service_pb2_grpc
from workerkit.results import ResultKind, TaskResults, check_offset

KIND = ResultKind(
    work="export",
    noun="export",
    made="files",
    file=RESULT,
    parse=Result.from_json,
    none_reason="NO_ARTIFACTS",
    most_bytes=64 << 20,
    large_reason="RESULT_TOO_LARGE",
    large_advice="take its files from its output directory",  # downloads need what export.json lists
)


class Exports:
    """Creates, finds and reads exports, each call with the token of the one who asks."""

    def __init__(self, tasks: "task_service_pb2_grpc.TaskServiceAsyncStub", store: ObjectStore) -> None:
        self._store = store
        self._results = TaskResults(tasks, store, KIND)

    async def create(self, name: str, spec: spec_pb2.ExportSpec, token: str) -> pb.Export:
        """Creates the task. Raises what the task service finds wrong, by the fields of CreateExportRequest."""
        return export_of(await self._results.create(name, spec_pb2.TaskSpec(export=spec), token), None)

    async def get(self, task_id: str, token: str) -> pb.Export:
        """An export with its files. NotFound for other tasks."""
        task = await self._results.task(task_id, token)
        return export_of(task, await self._results.result(task, token))

    async def list(self, page_size: int, page_token: str, token: str) -> tuple[list[pb.Export], str]:
        """A page of exports with their files, newest first, and the token of the next one."""
        found, following = await self._results.page(page_size, page_token, token)
        return [export_of(task, result) for task, result in found], following

    async def download(
        self, task_id: str, name: str, offset: int, token: str
    ) -> AsyncIterator[pb.DownloadArtifactResponse]:
        """The bytes of a file from an offset; the first piece tells its size and hash.

        NotFound for what export.json does not list, FailedPrecondition before there is a result, InvalidArgument for an
        offset beyond the end.
        """
        task = await self._results.task(task_id, token)
        key = f"{await self._results.output(task, token)}/{name}"
        artifact = (await self._results.result(task, token) or Result()).artifact(name)
        check_offset(offset, artifact.size, name)
        yield pb.DownloadArtifactResponse(total_size=artifact.size, sha256=artifact.sha256)
        async for piece in file_pieces(self._store, key, size=artifact.size, sha256=artifact.sha256, offset=offset):
            yield pb.DownloadArtifactResponse(data=piece)


def export_of(task: task_pb2.Task, result: Result | None) -> pb.Export:
    """A task as a message, with its result where there is one."""
    result = result or Result()
    return pb.Export(
        task_id=task.id,
        name=task.name,
        spec=task.spec.export,
        state=task.state,
        create_time=task.create_time,
        artifacts=[pb.Artifact(name=item.name, size=item.size, sha256=item.sha256) for item in result.artifacts],
        checks=[
            pb.ParityCheck(
                artifact=item.artifact,
                name=item.name,
                value=item.value,
                limit=item.limit,
                passed=item.passed,
                text=item.text,
            )
            for item in result.checks
        ],
    )
