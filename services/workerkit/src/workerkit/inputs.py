"""What tasks may name: directories, base models, datasets; kept in the scratch space as far as work went into them."""

from dataclasses import dataclass

import grpc

from modelkit.base_models import BaseModels
from modelkit.datasets import DataCache
from modelkit.paths import AllowedRoots
from servicekit.objects import ObjectStore
from tunesmith.task.v1 import dataset_service_pb2_grpc
from workerkit.datasets import DatasetChecks
from workerkit.remote_datasets import RemoteDatasets
from workerkit.settings import WorkerSettings

# Beneath the scratch space: rows as they were worked out, and base models that had to be converted.
DATA, CONVERTED = "data-cache", "converted-models"


@dataclass(frozen=True, slots=True)
class Inputs:
    """Where the inputs of tasks are found. cache holds what was worked out from data."""

    roots: AllowedRoots
    models: BaseModels
    datasets: DatasetChecks
    cache: DataCache

    @classmethod
    def of(cls, settings: WorkerSettings, store: ObjectStore, channel: grpc.aio.Channel) -> "Inputs":
        """As settings say; uploaded datasets are asked of the task service, to which the channel leads."""
        roots = AllowedRoots(settings.roots(), private=settings.private())
        conversions = DataCache(settings.work_dir / CONVERTED, settings.converted_models_bytes)
        cache = DataCache(settings.work_dir / DATA, settings.data_cache_bytes)
        uploads = dataset_service_pb2_grpc.DatasetServiceStub(channel)
        remote = RemoteDatasets(store, settings.object_store_url, uploads.GetDataset, cache)
        return cls(roots, BaseModels(roots, conversions=conversions), DatasetChecks(cache, remote), cache)
