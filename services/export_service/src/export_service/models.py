"""Stored models of fine-tuning tasks, handed out as they are."""

from collections.abc import AsyncIterator

from export_service.downloads import zip_pieces
from export_service.sources import has_adapter, is_adapter_file, stored_model
from servicekit.errors import FailedPrecondition, NotFound
from servicekit.objects import ObjectStore
from tunesmith.task.v1 import task_pb2, task_service_pb2_grpc
from workerkit.artifacts import ArtifactDamaged, read_manifest
from workerkit.sources import source_of


class StoredModels:
    """Streams checkpoints and final models, each call with the token of the one who asks."""

    def __init__(self, tasks: "task_service_pb2_grpc.TaskServiceAsyncStub", store: ObjectStore) -> None:
        self._tasks = tasks
        self._store = store

    async def download(self, task_id: str, step: int, *, adapter_only: bool, token: str) -> AsyncIterator[bytes]:
        """A ZIP of a checkpoint, for step 0 of the final model. An adapter alone comes without optimiser state.

        NotFound without such a task or checkpoint, FailedPrecondition for the adapter of a full training, before there
        is a final model, and when its manifest is missing or damaged.
        """
        source = await source_of(self._tasks, task_id, token)
        if adapter_only and not has_adapter(source):
            message = f"task {task_id} has trained all weights and has no adapter; download the whole model"
            raise FailedPrecondition(message, reason="NO_ADAPTER")
        stored = stored_model(source, step)
        if stored is None and step:
            raise NotFound(f"task {task_id} has no stored checkpoint of step {step}")
        if stored is None or source.spec.WhichOneof("work") != "finetune":
            state = task_pb2.State.Name(source.state).removeprefix("STATE_")
            raise FailedPrecondition(f"task {task_id} is {state} and has no final model", reason="NO_MODEL")
        prefix = stored.prefix.rstrip("/")
        try:
            manifest = await read_manifest(self._store, prefix, stored.manifest_sha256)
        except ArtifactDamaged as error:
            message = f"the stored model cannot be used: {error}"
            raise FailedPrecondition(message, reason="STORED_MODEL_DAMAGED") from None
        files = [file for file in manifest.files if not adapter_only or is_adapter_file(file.path)]
        async for piece in zip_pieces(self._store, prefix, files):
            yield piece
