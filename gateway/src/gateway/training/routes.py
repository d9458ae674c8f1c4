"""The routes below /api/training and what they do."""

from typing import Any

from starlette.routing import BaseRoute

from gateway.backends import Backends
from gateway.guide import uploads, views
from gateway.guide.call import Call
from gateway.guide.creation import LANGUAGE_MODEL, MODALITIES, MODEL_TYPE, Creation, modality_of
from gateway.guide.errors import QUERY
from gateway.guide.forms import read_form
from gateway.guide.models import GuideModels
from gateway.guide.spool import Spool
from gateway.guide.surface import surface
from gateway.guide.tasks import GuideTasks
from gateway.settings import GatewaySettings
from parameterkit import messages
from parameterkit.messages import Received
from servicekit.errors import InvalidArgument, Problem
from tunesmith.task.v1 import dataset_service_pb2
from tunesmith.trainer.v1 import trainer_service_pb2, trainer_service_pb2_grpc

PREFIX = "/api/training"
SURFACE = "training"
_DATASET_PAGE = 1000


def training_routes(backends: Backends, settings: GatewaySettings, spool: Spool) -> BaseRoute:
    """The surface below its prefix."""
    training = Training(backends)
    tasks = training.tasks
    table = [
        ("POST", "/start", training.start),
        ("GET", "/status/{task_id}", tasks.status),
        ("POST", "/stop/{task_id}", tasks.stop),
        ("GET", "/tasks", tasks.active),
        ("GET", "/history", tasks.history),
        ("POST", "/datasets/upload", training.upload_dataset),
        ("GET", "/datasets", training.list_datasets),
        ("DELETE", "/datasets/{dataset_id}", training.delete_dataset),
        ("GET", "/models", training.models),
        ("GET", "/checkpoints/{task_id}", tasks.checkpoints),
        ("GET", "/download/{task_id}", training.download),
        ("POST", "/image-classifier", training.image_classifier),
        ("POST", "/object-detection", training.object_detection),
    ]
    return surface(PREFIX, table, settings, spool)


class Training:
    """What the routes do."""

    def __init__(self, backends: Backends) -> None:
        self.tasks = GuideTasks(backends)
        self._models = GuideModels(backends)
        self._trainer = trainer_service_pb2_grpc.TrainerServiceStub(backends.channels["trainer"])

    async def start(self, call: Call) -> Any:
        """POST start: a TrainingRequest."""
        document = await call.document()
        modality, problem = _modality(document.pop(MODEL_TYPE, None))
        creation = Creation(document, SURFACE, modality)
        creation.problems[:0] = [problem] if problem else []
        return {"task_id": await self.tasks.create(call, creation)}

    async def image_classifier(self, call: Call) -> Any:
        """POST image-classifier: a form."""
        return await self.tasks.create_with_file(call, SURFACE, "image_classifier")

    async def object_detection(self, call: Call) -> Any:
        """POST object-detection: a form."""
        return await self.tasks.create_with_file(call, SURFACE, "object_detector")

    async def upload_dataset(self, call: Call) -> Any:
        """POST datasets/upload: a form of file, name and type."""
        async with read_form(call, uploads.FILE) as form:
            file, name, kind = form.file(uploads.FILE), form.text("name"), form.text("type")
            upload = self.tasks.datasets.UploadDataset
            dataset = await uploads.store(upload, call, file, uploads.FILE, name=name, kind=kind)
        return views.dataset_document(dataset)

    async def list_datasets(self, call: Call) -> Any:
        """GET datasets, newest first."""
        most = call.count("limit", _DATASET_PAGE, _DATASET_PAGE)
        request = dataset_service_pb2.ListDatasetsRequest(page_size=most, type=call.text("type"))
        response = await call.ask(self.tasks.datasets.ListDatasets, request)
        return [views.dataset_document(dataset) for dataset in response.datasets]

    async def delete_dataset(self, call: Call) -> Any:
        """DELETE datasets/{dataset_id}."""
        request = dataset_service_pb2.DeleteDatasetRequest(dataset_id=call.path("dataset_id"))
        await call.ask(self.tasks.datasets.DeleteDataset, request)
        return {"success": True, "message": "the dataset is deleted"}

    async def models(self, call: Call) -> Any:
        """GET models?model_type=."""
        modality, problem = _modality(call.text(MODEL_TYPE) or LANGUAGE_MODEL)
        if problem:
            raise InvalidArgument(problems=[Problem(QUERY + problem.field, problem.message)])
        asked = modality if call.text(MODEL_TYPE) else ""
        request = trainer_service_pb2.ListBaseModelsRequest(modality=asked)
        response = await call.ask(self._trainer.ListBaseModels, request)
        return [{"id": model.id, "name": model.name, "description": model.description} for model in response.models]

    async def download(self, call: Call) -> Any:
        """GET download/{task_id}."""
        task = await self.tasks.completed(call, call.path("task_id"))
        return await self._models.zipped(call, task, f"model_{task.id}.zip", adapter_only=False)


def _modality(word: Any) -> tuple[str, Problem | None]:
    """The modality that a model_type means; that of a language model beside the problem when it means none."""
    if modality := modality_of(word):
        return modality, None
    if word is None:
        return MODALITIES[LANGUAGE_MODEL], Problem(MODEL_TYPE, messages.REQUIRED.en)
    text = messages.CHOICE.say(messages.ENGLISH, choices=tuple(MODALITIES), received=Received(word))
    return MODALITIES[LANGUAGE_MODEL], Problem(MODEL_TYPE, text)
