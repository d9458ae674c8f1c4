"""Generation behind a real gRPC server, with a small task service, an object store of files and real processes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc

from eval_service.generation.generation import Generation
from eval_service.generation.servicer import GenerationServicer
from eval_service.generation.settings import GenerationSettings
from eval_service.generation.setup import running_generation
from modelkit.base_models import BaseModels
from modelkit.paths import AllowedRoots
from servicekit.errors import NotFound
from servicekit.grpc_client import open_channel
from servicekit.grpc_server import running_server
from servicekit.identity import Role, TokenIssuer, current_principal, generate_private_key, public_key
from servicekit.objects.file import FileObjectStore
from servicekit.settings import ServiceSettings
from tunesmith.eval.v1 import eval_service_pb2 as pb
from tunesmith.eval.v1 import eval_service_pb2_grpc
from tunesmith.task.v1 import spec_pb2, task_pb2, task_service_pb2, task_service_pb2_grpc
from workerkit.artifacts import Origin, Upload
from workerkit.fork_launcher import ForkLauncher

EVAL_NAME, TASK_NAME = "tunesmith.eval.v1.EvalService", "tunesmith.task.v1.TaskService"
LORA = spec_pb2.LanguageModelParameters(method=spec_pb2.METHOD_LORA)


async def _nothing() -> None:
    return None


@dataclass
class Tasks(task_service_pb2_grpc.TaskServiceServicer):
    """Tells of sources whose owner calls."""

    sources: dict[str, tuple[str, task_service_pb2.TaskSource]] = field(default_factory=dict)

    def __hash__(self) -> int:
        return id(self)

    async def GetTaskSource(self, request: Any, context: Any) -> Any:
        owner, source = self.sources.get(request.task_id, ("", None))
        if source is None or owner != current_principal().user:
            raise NotFound(f"there is no task {request.task_id}")
        return task_service_pb2.GetTaskSourceResponse(source=source)


@dataclass
class Caller:
    """A user of the service."""

    stub: Any

    async def ask(self, task_id: str, text: str = "What does a lock do?", **options: Any) -> "Told":
        """The whole answer to a question, greedy unless the options say otherwise."""
        told = Told()
        async for response in self.stub.Generate(request(task_id, text, **options)):
            told.responses.append(response)
        return told

    async def loaded(self) -> list[pb.LoadedModel]:
        return list((await self.stub.ListLoadedModels(pb.ListLoadedModelsRequest())).models)


@dataclass
class Told:
    """What came of a question."""

    responses: list[pb.GenerateResponse] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(response.text for response in self.responses)

    @property
    def phases(self) -> list[str]:
        return [response.loading.phase for response in self.responses if response.HasField("loading")]

    @property
    def end(self) -> pb.GenerateResponse:
        return self.responses[-1]


@dataclass
class Service:
    """A running service and what it works with."""

    directory: Path
    tasks: Tasks
    store: FileObjectStore
    target: str
    issuer: TokenIssuer
    generation: Generation
    channels: list[grpc.aio.Channel] = field(default_factory=list)

    def caller(self, user: str = "ada", role: Role = Role.USER) -> Caller:
        channel = open_channel(self.target, self.issuer.issue(user, role, timedelta(minutes=5)))
        self.channels.append(channel)
        return Caller(eval_service_pb2_grpc.EvalServiceStub(channel))

    async def finetune(
        self,
        task_id: str,
        base: Path,
        checkpoints: dict[int, Path],
        *,
        output: Path | None = None,
        parameters: spec_pb2.LanguageModelParameters = LORA,
        owner: str = "ada",
    ) -> None:
        """Makes a fine-tuning task with stored checkpoints known; of one with an output that is its last step."""
        source = task_service_pb2.TaskSource(task_id=task_id, name=task_id, state=task_pb2.STATE_RUNNING)
        source.spec.finetune.base_model = str(base)
        source.spec.finetune.language_model.CopyFrom(parameters)
        for step, directory in checkpoints.items():
            stored = await self.upload(task_id, f"checkpoint-{step}", directory)
            source.checkpoints.add(
                task_id=task_id, step=step, prefix=stored.prefix, manifest_sha256=stored.manifest_sha256
            )
        if output is not None:
            stored = await self.upload(task_id, "output", output)
            source.output.prefix, source.output.manifest_sha256 = stored.prefix, stored.manifest_sha256
            source.output.step = max(checkpoints, default=0) + 1
        self.tasks.sources[task_id] = owner, source

    async def export(self, task_id: str, output: Path) -> None:
        """Makes a completed export known."""
        stored = await self.upload(task_id, "output", output)
        source = task_service_pb2.TaskSource(task_id=task_id, state=task_pb2.STATE_COMPLETED)
        source.spec.export.source_task_id = "another"
        source.output.prefix, source.output.manifest_sha256 = stored.prefix, stored.manifest_sha256
        self.tasks.sources[task_id] = "ada", source

    async def upload(self, task_id: str, name: str, directory: Path) -> Any:
        origin = Origin(task_id, 1, 1, "base")
        return await Upload(self.store, origin, name, directory, step=1, ensure=_nothing).run()


def request(task_id: str, text: str, **options: Any) -> pb.GenerateRequest:
    """A question in one message, greedy unless the options say otherwise."""
    settings = {"temperature": 0.0, "repetition_penalty": 1.0, "max_tokens": 12, **options}
    settings.setdefault("messages", [pb.Message(role="user", content=text)])
    return pb.GenerateRequest(task_id=task_id, **settings)


@contextlib.asynccontextmanager
async def running_service(
    directory: Path, roots: list[Path], launcher: ForkLauncher, **options: Any
) -> AsyncIterator[Service]:
    """The service in a directory, with models of the roots."""
    directory.mkdir(parents=True, exist_ok=True)
    private = generate_private_key()
    key_file = directory / "public.pem"
    key_file.write_bytes(public_key(private))
    values = {"port": 0, "public_key_file": key_file, "drain_seconds": 0, "generation_context_tokens": 512}
    settings = GenerationSettings(**{**values, **options})
    store, tasks = FileObjectStore(directory / "objects"), Tasks()
    await store.prepare()
    add_tasks = task_service_pb2_grpc.add_TaskServiceServicer_to_server
    add_eval = eval_service_pb2_grpc.add_EvalServiceServicer_to_server
    task_settings = ServiceSettings(port=0, public_key_file=key_file, drain_seconds=0)
    async with contextlib.AsyncExitStack() as stack:
        task_server = await stack.enter_async_context(running_server(task_settings, [(add_tasks, tasks, TASK_NAME)]))
        task_channel = open_channel(f"127.0.0.1:{task_server.port}")
        stack.push_async_callback(task_channel.close)
        generation = await stack.enter_async_context(
            running_generation(
                settings,
                scratch=directory / "scratch",
                work_dir=directory / "work",
                tasks=task_service_pb2_grpc.TaskServiceStub(task_channel),  # type: ignore[arg-type]
                store=store,
                base_models=BaseModels(AllowedRoots(roots)),
                launcher=launcher,
            )
        )
        server = await stack.enter_async_context(
            running_server(settings, [(add_eval, GenerationServicer(generation), EVAL_NAME)])
        )
        target = f"127.0.0.1:{server.port}"
        service = Service(directory, tasks, store, target, TokenIssuer(private), generation)
        yield service
        await asyncio.gather(*(channel.close() for channel in service.channels))
    await store.close()
