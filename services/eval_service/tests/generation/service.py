"""Generation behind a real gRPC server, with a small task service, an object store of files and real processes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from eval_service.generation.generation import Generation
from eval_service.generation.servicer import GenerationServicer
from eval_service.generation.settings import GenerationSettings
from eval_service.generation.setup import running_generation
from eval_service.setup import NAME
from modelkit.base_models import BaseModels
from modelkit.paths import AllowedRoots
from servicekit.grpc_client import open_channel
from servicekit.grpc_server import running_server
from servicekit.identity import Role
from servicekit.objects.file import FileObjectStore
from services.workerkit.tests.known_tasks import TaskOffice, running_tasks
from tunesmith.eval.v1 import eval_service_pb2 as pb
from tunesmith.eval.v1 import eval_service_pb2_grpc
from tunesmith.task.v1 import spec_pb2, task_pb2, task_service_pb2
from workerkit.artifacts import Origin, Upload
from workerkit.fork_launcher import ForkLauncher

LORA = spec_pb2.LanguageModelParameters(method=spec_pb2.METHOD_LORA)


async def _nothing() -> None:
    return None


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
    office: TaskOffice
    store: FileObjectStore
    target: str
    generation: Generation
    channels: list[grpc.aio.Channel] = field(default_factory=list)

    def caller(self, user: str = "ada", role: Role = Role.USER) -> Caller:
        channel = open_channel(self.target, self.office.token(user, role))
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
        self.office.known.add(source, owner)

    async def export(self, task_id: str, output: Path) -> None:
        """Makes a completed export known."""
        stored = await self.upload(task_id, "output", output)
        source = task_service_pb2.TaskSource(task_id=task_id, state=task_pb2.STATE_COMPLETED)
        source.spec.export.source_task_id = "another"
        source.output.prefix, source.output.manifest_sha256 = stored.prefix, stored.manifest_sha256
        self.office.known.add(source, "ada")

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
    store = FileObjectStore(directory / "objects")
    await store.prepare()
    add_eval = eval_service_pb2_grpc.add_EvalServiceServicer_to_server
    async with contextlib.AsyncExitStack() as stack:
        office = await stack.enter_async_context(running_tasks(directory / "public.pem"))
        values = {"port": 0, "drain_seconds": 0, "generation_context_tokens": 512, **options}
        settings = GenerationSettings(public_key_file=office.public_key_file, **values)
        generation = await stack.enter_async_context(
            running_generation(
                settings,
                scratch=directory / "scratch",
                work_dir=directory / "work",
                tasks=office.stub,
                store=store,
                base_models=BaseModels(AllowedRoots(roots)),
                launcher=launcher,
            )
        )
        server = await stack.enter_async_context(
            running_server(settings, [(add_eval, GenerationServicer(generation), NAME)])
        )
        target = f"127.0.0.1:{server.port}"
        service = Service(directory, office, store, target, generation)
        yield service
        await asyncio.gather(*(channel.close() for channel in service.channels))
    await store.close()
