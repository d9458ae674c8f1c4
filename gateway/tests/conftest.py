"""A gateway on a free port in front of services that answer from memory, over real HTTP and real gRPC."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.protobuf.message import Message

from gateway.backends import connect
from gateway.settings import GatewaySettings
from gateway.setup import build_app, build_server, listen
from gateway.tests.model_services import EvalService, ExportService
from servicekit.errors import FailedPrecondition, InvalidArgument, NotFound, Problem, TunesmithError
from servicekit.grpc_server import Servicer, running_server
from servicekit.identity import Role, TokenIssuer, generate_private_key, public_key
from servicekit.settings import ServiceSettings
from task_service.parameters.servicer import ParameterServicer
from tunesmith.eval.v1 import eval_service_pb2_grpc
from tunesmith.export.v1 import export_service_pb2_grpc
from tunesmith.task.v1 import (
    dataset_service_pb2,
    dataset_service_pb2_grpc,
    parameter_service_pb2_grpc,
    quota_service_pb2,
    quota_service_pb2_grpc,
    task_pb2,
    task_service_pb2,
    task_service_pb2_grpc,
)
from tunesmith.trainer.v1 import trainer_service_pb2, trainer_service_pb2_grpc

TASK_ID, EXPORT_ID = "01k" + "a" * 23, "01k" + "b" * 23
ENDED = (task_pb2.STATE_COMPLETED, task_pb2.STATE_FAILED, task_pb2.STATE_STOPPED)


def finetune_task(**fields: Any) -> task_pb2.Task:
    """A task that runs."""
    task = task_pb2.Task(id=TASK_ID, number=7, name="one", owner="ada", state=task_pb2.STATE_RUNNING, attempt=1)
    task.kind = task_pb2.KIND_FINETUNE
    task.spec.finetune.base_model = "THUDM/chatglm3-6b"
    task.spec.finetune.dataset.path = "/data/medicalqa"
    task.create_time.FromJsonString("2026-01-02T03:04:05.678Z")
    task.update_time.FromJsonString("2026-01-02T03:05:06Z")
    task.MergeFrom(task_pb2.Task(**fields))
    return task


@dataclass
class TaskService(task_service_pb2_grpc.TaskServiceServicer):
    """Keeps tasks in memory; remembers what it was asked. error is raised by every call while it is set."""

    tasks: dict[str, task_pb2.Task] = field(default_factory=dict)
    requests: list[Message] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    spec_problems: list[Problem] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    error: TunesmithError | None = None
    silent: bool = False
    events: "asyncio.Queue[Message | TunesmithError | None]" = field(default_factory=asyncio.Queue)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    def __hash__(self) -> int:
        return id(self)

    def asked(self, request: Message, context: Any) -> None:
        self.requests.append(request)
        self.metadata = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        if self.error is not None:
            raise self.error

    def add(self, **fields: Any) -> task_pb2.Task:
        task = finetune_task(**fields)
        self.tasks[task.id] = task
        return task

    def find(self, task_id: str, number: int = 0) -> task_pb2.Task:
        for task in self.tasks.values():
            if task.id == task_id or (number and task.number == number):
                return task
        raise NotFound(f"task {task_id or number} does not exist", reason="TASK_NOT_FOUND")

    async def CreateTask(self, request: Any, context: Any) -> Any:
        self.asked(request, context)
        if self.spec_problems:
            raise InvalidArgument(problems=self.spec_problems)
        task = finetune_task(name=request.name, labels=request.labels)
        task.spec.CopyFrom(request.spec)
        task.id = EXPORT_ID if task.spec.HasField("export") else TASK_ID
        if not request.validate_only:
            self.tasks[task.id] = task
        return task_service_pb2.CreateTaskResponse(task=task)

    async def GetTask(self, request: Any, context: Any) -> Any:
        self.asked(request, context)
        if self.silent:
            await asyncio.Event().wait()
        return task_service_pb2.GetTaskResponse(task=self.find(request.task_id, request.number))

    async def ListTasks(self, request: Any, context: Any) -> Any:
        self.asked(request, context)
        tasks = [task for task in self.tasks.values() if not request.states or task.state in request.states]
        return task_service_pb2.ListTasksResponse(tasks=tasks, total_size=len(tasks))

    async def StopTask(self, request: Any, context: Any) -> Any:
        self.asked(request, context)
        task = self.find(request.task_id)
        if task.state in ENDED:
            raise FailedPrecondition("the task has ended", reason="TASK_ENDED")
        task.state = task_pb2.STATE_STOPPING
        return task_service_pb2.StopTaskResponse(task=task)

    async def DeleteTask(self, request: Any, context: Any) -> Any:
        self.asked(request, context)
        del self.tasks[self.find(request.task_id).id]
        return task_service_pb2.DeleteTaskResponse()

    async def ReadLog(self, request: Any, context: Any) -> Any:
        self.asked(request, context)
        lines = self.log[request.offset :]
        lines = lines[-request.tail :] if request.tail else lines
        return task_service_pb2.ReadLogResponse(
            lines=[task_pb2.LogLine(text=line) for line in lines], total_lines=len(self.log)
        )

    async def ListMetrics(self, request: Any, context: Any) -> Any:
        self.asked(request, context)
        series = task_service_pb2.MetricSeries(name="loss", steps=[1, 2], values=[2.5, float("nan")])
        return task_service_pb2.ListMetricsResponse(series=[series])

    async def WatchTask(self, request: Any, context: Any) -> Any:
        async for message in self.stream(request, context):
            yield message

    async def WatchTasks(self, request: Any, context: Any) -> Any:
        async for message in self.stream(request, context):
            yield message

    async def ListCheckpoints(self, request: Any, context: Any) -> Any:
        self.asked(request, context)
        checkpoint = task_pb2.Checkpoint(task_id=request.task_id, step=10, loss=1.5, prefix="tasks/x/1/10", size=7)
        return task_service_pb2.ListCheckpointsResponse(checkpoints=[checkpoint])

    async def TailLog(self, request: Any, context: Any) -> Any:
        async for message in self.stream(request, context):
            yield message

    async def stream(self, request: Any, context: Any) -> AsyncIterator[Message]:
        """What is put into events, until None."""
        self.asked(request, context)
        try:
            while (message := await self.events.get()) is not None:
                if isinstance(message, TunesmithError):
                    raise message
                yield message
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise


@dataclass
class DatasetService(dataset_service_pb2_grpc.DatasetServiceServicer):
    """Keeps uploads in memory. error is raised by every upload while it is set, after its header."""

    headers: list[dataset_service_pb2.DatasetHeader] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)
    largest_part: int = 0
    metadata: dict[str, str] = field(default_factory=dict)
    error: TunesmithError | None = None

    def __hash__(self) -> int:
        return id(self)

    def dataset(self, index: int) -> dataset_service_pb2.Dataset:
        header, content = self.headers[index], self.contents[index]
        return dataset_service_pb2.Dataset(
            id=f"{index:026}", name=header.name, type=header.type, size=len(content), samples=3, version=1
        )

    async def UploadDataset(self, requests: Any, context: Any) -> Any:
        self.metadata = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        content, header = b"", None
        async for part in requests:
            if part.WhichOneof("part") == "header":
                header = part.header
                if self.error is not None:
                    raise self.error
            self.largest_part = max(self.largest_part, len(part.data))
            content += part.data
        self.headers.append(header)
        self.contents.append(content)
        return dataset_service_pb2.UploadDatasetResponse(dataset=self.dataset(len(self.headers) - 1))

    async def ListDatasets(self, request: Any, context: Any) -> Any:
        datasets = [self.dataset(index) for index in range(len(self.headers))]
        found = [dataset for dataset in datasets if not request.type or dataset.type == request.type]
        return dataset_service_pb2.ListDatasetsResponse(datasets=found)

    async def DeleteDataset(self, request: Any, context: Any) -> Any:
        if not request.dataset_id.isdigit() or int(request.dataset_id) >= len(self.headers):
            raise NotFound(f"there is no dataset {request.dataset_id}")
        return dataset_service_pb2.DeleteDatasetResponse()


class QuotaService(quota_service_pb2_grpc.QuotaServiceServicer):
    async def GetQuota(self, request: Any, context: Any) -> Any:
        return quota_service_pb2.GetQuotaResponse(quota=quota_service_pb2.Quota(user="ada", monthly_allowance=-1))


class TrainerService(trainer_service_pb2_grpc.TrainerServiceServicer):
    async def ListDevices(self, request: Any, context: Any) -> Any:
        return trainer_service_pb2.ListDevicesResponse(devices=[trainer_service_pb2.Device(id="cpu", cores=2)])

    async def ListBaseModels(self, request: Any, context: Any) -> Any:
        models = [
            trainer_service_pb2.BaseModel(
                id="llama-2-7b", name="LLaMA 2 7B", parameters="7B", description=request.modality or "any"
            )
        ]
        return trainer_service_pb2.ListBaseModelsResponse(models=models)

    async def ValidateDataset(self, request: Any, context: Any) -> Any:
        return trainer_service_pb2.ValidateDatasetResponse(valid=True, rows=3)


def servicers(
    tasks: TaskService, datasets: DatasetService, evaluations: EvalService, exports: ExportService
) -> list[Servicer]:
    task, dataset, quota = task_service_pb2_grpc, dataset_service_pb2_grpc, quota_service_pb2_grpc
    return [
        (task.add_TaskServiceServicer_to_server, tasks, "tunesmith.task.v1.TaskService"),
        (dataset.add_DatasetServiceServicer_to_server, datasets, "tunesmith.task.v1.DatasetService"),
        (quota.add_QuotaServiceServicer_to_server, QuotaService(), "tunesmith.task.v1.QuotaService"),
        (
            parameter_service_pb2_grpc.add_ParameterServiceServicer_to_server,
            ParameterServicer(),
            "tunesmith.task.v1.ParameterService",
        ),
        (
            trainer_service_pb2_grpc.add_TrainerServiceServicer_to_server,
            TrainerService(),
            "tunesmith.trainer.v1.TrainerService",
        ),
        (eval_service_pb2_grpc.add_EvalServiceServicer_to_server, evaluations, "tunesmith.eval.v1.EvalService"),
        (
            export_service_pb2_grpc.add_ExportServiceServicer_to_server,
            exports,
            "tunesmith.export.v1.ExportService",
        ),
    ]


@dataclass
class Gateway:
    """A running gateway, the service behind it, and a client that sends a good token."""

    url: str
    client: httpx.AsyncClient
    tasks: TaskService
    datasets: DatasetService
    issuer: TokenIssuer
    closing: asyncio.Event
    services: Any
    evaluations: EvalService
    exports: ExportService

    async def finetuning(self, method: str, route: str, prefix: str = "", **arguments: Any) -> tuple[int, Any, str]:
        """Code, data and message of a call of the fine-tuning tasks surface."""
        response = await self.client.request(method, f"{prefix}/finetuning/{route}", **arguments)
        assert response.status_code == 200, response.text
        document = response.json()
        assert list(document) == ["code", "data", "msg"]
        return document["code"], document["data"], document["msg"]

    def token(self, user: str = "ada", lifetime: timedelta = timedelta(minutes=5)) -> str:
        return self.issuer.issue(user, Role.USER, lifetime)


StartGateway = Callable[..., Awaitable[Gateway]]


@asynccontextmanager
async def running_gateway(directory: Path, **overrides: Any) -> AsyncIterator[Gateway]:
    private = generate_private_key()
    key_file = directory / "public.pem"
    key_file.write_bytes(public_key(private))
    tasks, datasets, closing = TaskService(), DatasetService(), asyncio.Event()
    evaluations, exports = EvalService(), ExportService()
    service_settings = ServiceSettings(public_key_file=key_file, drain_seconds=0)
    async with running_server(service_settings, servicers(tasks, datasets, evaluations, exports)) as services:
        target = f"127.0.0.1:{services.port}"
        targets = {f"{name}_target": target for name in ("task", "trainer", "eval", "export")}
        values = {"port": 0, "public_key_file": key_file, "drain_seconds": 1.0, **targets, **overrides}
        settings = GatewaySettings(**values)
        backends = connect(settings)
        server = build_server(settings, build_app(settings, backends, closing))
        listener = listen(settings)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        issuer = TokenIssuer(private)
        headers = {"authorization": f"Bearer {issuer.issue('ada', Role.USER, timedelta(minutes=5))}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False, timeout=10) as client:
            yield Gateway(url, client, tasks, datasets, issuer, closing, services, evaluations, exports)
        closing.set()
        server.should_exit = True
        await serving
        await backends.close()


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with running_gateway(tmp_path) as running:
        yield running


@pytest.fixture
def start_gateway() -> Callable[..., Any]:
    """For tests that need settings of their own: async with start_gateway(directory, name=value)."""
    return running_gateway


@dataclass
class Event:
    """A server-sent event."""

    id: str = ""
    name: str = "message"
    data: str = ""


def parse_events(text: str) -> list[Event]:
    """The events of a stream that has ended, comments left out."""
    events = []
    for block in text.split("\n\n"):
        fields = dict(re.findall(r"^(id|event|data): (.*)$", block, re.MULTILINE))
        if "data" in fields:
            events.append(Event(fields.get("id", ""), fields.get("event", "message"), fields["data"]))
    return events


@pytest.fixture(name="parse_events")
def parse_events_fixture() -> Callable[[str], list[Event]]:
    return parse_events
