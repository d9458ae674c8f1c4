"""Wiring of live generation."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from eval_service.generation.files import StoredFiles
from eval_service.generation.generation import Generation
from eval_service.generation.models import LoadedModels
from eval_service.generation.preparation import Preparation
from eval_service.generation.process import Launcher
from eval_service.generation.settings import GenerationSettings
from modelkit.base_models import BaseModels
from modelkit.datasets import DataCache
from servicekit.objects import ObjectStore

if TYPE_CHECKING:
    from tunesmith.task.v1 import task_service_pb2_grpc

PROCESSES, CACHE = "generating", "generation-cache"


@contextlib.asynccontextmanager
async def running_generation(
    settings: GenerationSettings,
    *,
    scratch: Path,
    work_dir: Path,
    tasks: "task_service_pb2_grpc.TaskServiceAsyncStub",
    store: ObjectStore,
    base_models: BaseModels,
    launcher: Launcher,
) -> AsyncIterator[Generation]:
    """Generation with processes below scratch, which is this process's own, and a cache below work_dir.

    Its models are ended with the context.
    """
    limits = settings.generation_limits()
    cache = DataCache(work_dir / CACHE, settings.generation_cache_bytes)
    files = StoredFiles(store, cache, most_waiters=limits.at_once + limits.queue)
    models = LoadedModels(launcher, scratch / PROCESSES, limits)
    try:
        yield Generation(tasks, Preparation(files, base_models, limits), models)
    finally:
        await models.close()
        await files.close()
