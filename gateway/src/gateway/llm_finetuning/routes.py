"""The routes below /api/llm-finetuning and what they do."""

from typing import Any

from starlette.routing import BaseRoute

from gateway.backends import Backends
from gateway.guide import uploads, views
from gateway.guide.call import Call
from gateway.guide.creation import Creation
from gateway.guide.forms import read_form
from gateway.guide.models import GuideModels
from gateway.guide.spool import Spool
from gateway.guide.surface import Action, surface
from gateway.guide.tasks import GuideTasks
from gateway.settings import GatewaySettings
from parameterkit import messages
from parameterkit.messages import Received
from servicekit.errors import InvalidArgument, Problem
from tunesmith.task.v1 import task_pb2
from tunesmith.trainer.v1 import trainer_service_pb2, trainer_service_pb2_grpc

PREFIX = "/api/llm-finetuning"
LORA, QLORA = "llm_finetuning", "llm_finetuning_qlora"
TASK_ID = "task_id"
MOST_TOKENS = 8192


def llm_finetuning_routes(backends: Backends, settings: GatewaySettings, spool: Spool) -> BaseRoute:
    """The surface below its prefix."""
    llm = LlmFinetuning(backends)
    tasks = llm.tasks
    table = [
        ("POST", "/lora/start", _starter(llm, LORA)),
        ("POST", "/qlora/start", _starter(llm, QLORA)),
        ("POST", "/lora", _form_starter(llm, LORA)),
        ("POST", "/qlora", _form_starter(llm, QLORA)),
        ("GET", "/status/{task_id}", tasks.status),
        ("POST", "/stop/{task_id}", tasks.stop),
        ("GET", "/tasks", tasks.active),
        ("GET", "/models", llm.models),
        ("POST", "/data/upload", llm.upload),
        ("GET", "/adapters", llm.adapters),
        ("POST", "/merge", llm.merge),
        ("POST", "/test", llm.test),
        ("GET", "/export/{task_id}", llm.export),
    ]
    return surface(PREFIX, table, settings, spool)


class LlmFinetuning:
    """What the routes do."""

    def __init__(self, backends: Backends) -> None:
        self.tasks = GuideTasks(backends, lambda task: task.spec.finetune.HasField("language_model"))
        self._models = GuideModels(backends)
        self._trainer = trainer_service_pb2_grpc.TrainerServiceStub(backends.channels["trainer"])

    async def start(self, call: Call, defaults: str) -> Any:
        """POST lora/start, qlora/start: a LoRARequest."""
        return {TASK_ID: await self.tasks.create(call, Creation(await call.document(), defaults))}

    async def start_with_file(self, call: Call, defaults: str) -> Any:
        """POST lora, qlora: a form."""
        return await self.tasks.create_with_file(call, defaults)

    async def models(self, call: Call) -> Any:
        """GET models."""
        request = trainer_service_pb2.ListBaseModelsRequest(modality="language_model")
        response = await call.ask(self._trainer.ListBaseModels, request)
        return [
            {"id": model.id, "name": model.name, "parameters": model.parameters, "description": model.description}
            for model in response.models
        ]

    async def upload(self, call: Call) -> Any:
        """POST data/upload: a form with a file; path is what dataset_path takes."""
        async with read_form(call, uploads.FILE) as form:
            file = form.file(uploads.FILE)
            dataset = await uploads.store(self.tasks.datasets.UploadDataset, call, file, uploads.FILE)
        return {"path": dataset.id, "samples": dataset.samples}

    async def adapters(self, call: Call) -> Any:
        """GET adapters: what completed tasks have left."""
        completed = await self.tasks.listed(call, [task_pb2.STATE_COMPLETED])
        return {"adapters": [views.adapter_document(task) for task in completed if views.has_adapter(task)]}

    async def merge(self, call: Call) -> Any:
        """POST merge; answered when the merged model is there."""
        document = await call.document()
        _require_texts(document, TASK_ID, "output_path")
        task = await self.tasks.completed(call, document[TASK_ID])
        return await call.while_there(self._models.merge(call, task, document["output_path"]))

    async def test(self, call: Call) -> Any:
        """POST test: the model's answer to a prompt."""
        document = await call.document()
        _require_texts(document, TASK_ID, "prompt")
        tokens = document.get("max_tokens")
        if tokens is not None and (type(tokens) is not int or not 1 <= tokens <= MOST_TOKENS):
            text = f"a whole number from 1 to {MOST_TOKENS} was expected, not {messages.received(tokens)}"
            raise InvalidArgument(problems=[Problem("max_tokens", text)])
        task = await self.tasks.completed(call, document[TASK_ID])
        answer = await call.while_there(self._models.answer(call, task, document["prompt"], tokens))
        return {"response": answer}

    async def export(self, call: Call) -> Any:
        """GET export/{task_id}: the adapter as a ZIP."""
        task = await self.tasks.completed(call, call.path(TASK_ID))
        return await self._models.zipped(call, task, f"lora_adapter_{task.id}.zip", adapter_only=True)


def _starter(llm: LlmFinetuning, defaults: str) -> Action:
    return lambda call: llm.start(call, defaults)


def _form_starter(llm: LlmFinetuning, defaults: str) -> Action:
    return lambda call: llm.start_with_file(call, defaults)


def _require_texts(document: dict[str, Any], *names: str) -> None:
    """Raises InvalidArgument for every member that is missing or no text."""
    problems = []
    for name in names:
        value = document.get(name)
        if value in (None, ""):
            problems.append(Problem(name, messages.REQUIRED.en))
        elif not isinstance(value, str):
            problems.append(Problem(name, messages.TEXT.say(messages.ENGLISH, received=Received(value))))
    if problems:
        raise InvalidArgument(problems=problems)
