"""A task service over real gRPC, NATS and database, whose background duties a test runs step by step or all at once."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from servicekit import subjects
from servicekit.bus import EventBus, Message, PullConsumer
from servicekit.database import close_engine, create_engine
from servicekit.errors import Problem
from servicekit.grpc_client import open_channel
from servicekit.grpc_server import running_server
from servicekit.identity import Role, TokenIssuer, generate_private_key, public_key
from servicekit.objects import ObjectStore, open_object_store
from servicekit.outbox import Outbox, Relay
from task_service.commands.core import Core
from task_service.database.access import Database
from task_service.database.models import OUTBOX
from task_service.database.schema import migrate
from task_service.datasets.checking import Checked
from task_service.facts.consumer import ACK_WAIT_SECONDS, DURABLE, MAX_ACK_PENDING, FactConsumer
from task_service.garbage import GarbageCollector
from task_service.leader import keep_running
from task_service.reconciler import Reconciler
from task_service.settings import TaskServiceSettings
from task_service.setup import Checks, duties, servicers
from tests.support.waiting import eventually
from tunesmith.events.v1 import fact_pb2
from tunesmith.task.v1 import event_pb2, spec_pb2, task_pb2, task_service_pb2, task_service_pb2_grpc

PRIVATE_KEY = generate_private_key()
ISSUER = TokenIssuer(PRIVATE_KEY)


@dataclass
class Checker:
    """Stands for the services that do the work: says what the test wants said."""

    found: list[Problem] = field(default_factory=list)
    error: Exception | None = None
    calls: int = 0
    identities: list[Any] = field(default_factory=list)
    specs: list[spec_pb2.TaskSpec] = field(default_factory=list)
    sources: list[task_service_pb2.TaskSource | None] = field(default_factory=list)

    async def problems(
        self, spec: spec_pb2.TaskSpec, source: task_service_pb2.TaskSource | None, identity: Any
    ) -> list[Problem]:
        self.calls += 1
        self.specs.append(spec)
        self.sources.append(source)
        self.identities.append(identity)
        if self.error is not None:
            raise self.error
        return self.found


@dataclass
class DatasetCheckerStub:
    """Stands for the trainer service: finds in datasets what the test wants found."""

    found: Checked | None = None
    error: Exception | None = None
    tokens: list[Any] = field(default_factory=list)

    async def check(self, dataset_id: str, identity: Any) -> Checked | None:
        self.tokens.append(identity)
        if self.error is not None:
            raise self.error
        return self.found


def language_model_spec(**training: Any) -> spec_pb2.TaskSpec:
    return spec_pb2.TaskSpec(
        finetune=spec_pb2.FinetuneSpec(
            base_model="models/base",
            dataset=spec_pb2.DatasetSource(path="data"),
            training=spec_pb2.TrainingParameters(**training),
            language_model=spec_pb2.LanguageModelParameters(method=spec_pb2.METHOD_FULL),
        )
    )


def create_request(name: str = "a task", **fields: Any) -> task_service_pb2.CreateTaskRequest:
    fields.setdefault("spec", language_model_spec())
    return task_service_pb2.CreateTaskRequest(name=name, **fields)


class Client:
    """One caller."""

    def __init__(self, target: str, user: str, role: Role) -> None:
        self.channel = open_channel(target, ISSUER.issue(user, role, timedelta(hours=1)))
        self.stub = task_service_pb2_grpc.TaskServiceStub(self.channel)

    async def create(self, name: str = "a task", **fields: Any) -> task_pb2.Task:
        return (await self.stub.CreateTask(create_request(name, **fields))).task

    async def get(self, task_id: str) -> task_pb2.Task:
        return (await self.stub.GetTask(task_service_pb2.GetTaskRequest(task_id=task_id))).task

    async def page(self, **fields: Any) -> task_service_pb2.ListTasksResponse:
        return await self.stub.ListTasks(task_service_pb2.ListTasksRequest(**fields))

    async def stop(self, task_id: str, discard: bool = False) -> task_pb2.Task:
        request = task_service_pb2.StopTaskRequest(task_id=task_id, discard=discard)
        return (await self.stub.StopTask(request)).task

    async def resume(self, task_id: str, step: int = 0) -> task_pb2.Task:
        request = task_service_pb2.ResumeTaskRequest(task_id=task_id, checkpoint_step=step)
        return (await self.stub.ResumeTask(request)).task

    async def delete(self, task_id: str, force: bool = False) -> None:
        await self.stub.DeleteTask(task_service_pb2.DeleteTaskRequest(task_id=task_id, force=force))

    async def source(self, task_id: str) -> task_service_pb2.TaskSource:
        request = task_service_pb2.GetTaskSourceRequest(task_id=task_id)
        return (await self.stub.GetTaskSource(request)).source

    async def checkpoints(self, task_id: str) -> list[task_pb2.Checkpoint]:
        request = task_service_pb2.ListCheckpointsRequest(task_id=task_id)
        return list((await self.stub.ListCheckpoints(request)).checkpoints)


class Attempt:
    """What a worker does within one attempt, without training anything."""

    def __init__(self, worker: "Worker", claim: task_service_pb2.ClaimTaskResponse) -> None:
        self.claim = claim
        self.task_id = claim.task.id
        self.number = claim.task.attempt
        self._worker = worker
        self._sequence = 0

    def fact(self, sequence: int = 0, **payload: Any) -> fact_pb2.Fact:
        """The next fact, or one with a chosen sequence."""
        if not sequence:
            self._sequence += 1
        fact = fact_pb2.Fact(task_id=self.task_id, attempt=self.number, sequence=sequence or self._sequence, **payload)
        fact.time.GetCurrentTime()
        return fact

    async def say(self, **payload: Any) -> None:
        await self._worker.publish(self.fact(**payload))

    async def heartbeat(self, pid: int = 77) -> int:
        request = task_service_pb2.HeartbeatTaskRequest(
            task_id=self.task_id, attempt=self.number, worker=self._worker.name, pid=pid
        )
        return (await self._worker.client.stub.HeartbeatTask(request)).directive

    def metrics(self, step: int, **values: float) -> fact_pb2.MetricsReported:
        points = [task_pb2.MetricPoint(name=name, step=step, value=value) for name, value in values.items()]
        return fact_pb2.MetricsReported(points=points)

    def checkpoint(self, step: int) -> task_pb2.Checkpoint:
        prefix = f"tasks/{self.task_id}/attempts/{self.number}/checkpoint-{step}"
        return task_pb2.Checkpoint(task_id=self.task_id, attempt=self.number, step=step, prefix=prefix, size=10)

    def completed(self) -> fact_pb2.AttemptCompleted:
        prefix = f"tasks/{self.task_id}/attempts/{self.number}/output"
        return fact_pb2.AttemptCompleted(output_prefix=prefix, output_dir=f"/out/{self.task_id}")


def crashed(reason: str = "CRASHED", retryable: bool = True) -> fact_pb2.AttemptFailed:
    error = task_pb2.TaskError(reason=reason, message="the child ended with signal 9")
    return fact_pb2.AttemptFailed(error=error, retryable=retryable)


class Worker:
    """A worker process, as far as the task service can see one."""

    def __init__(self, client: Client, bus: EventBus, name: str) -> None:
        self.client = client
        self.name = name
        self._bus = bus

    async def claim(self, task_id: str, attempt: int = 1) -> Attempt:
        request = task_service_pb2.ClaimTaskRequest(task_id=task_id, attempt=attempt, worker=self.name)
        return Attempt(self, await self.client.stub.ClaimTask(request))

    async def publish(self, fact: fact_pb2.Fact) -> None:
        await self._bus.publish(subjects.fact(fact.task_id), fact.SerializeToString())


class Service:
    """A running task service and everything a test needs of it."""

    def __init__(self, core: Core, bus: EventBus, objects: ObjectStore, settings: TaskServiceSettings) -> None:
        self.core = core
        self.bus = bus
        self.objects = objects
        self.settings = settings
        self.checker = Checker()
        self.dataset_checker = DatasetCheckerStub()
        self.checks = Checks(self.checker, self.dataset_checker)
        self.relay = Relay(core.outbox, core.database.sessions, bus)
        self.facts = FactConsumer(core, bus)
        self.garbage = GarbageCollector(core.database, objects)
        self.time = 0.0
        self.reconciler = Reconciler(core, bus, interval=0.05, grace=0.0, clock=lambda: self.time)
        self.target = ""
        self._consumer: PullConsumer | None = None
        self._clients: list[Client] = []

    def client(self, user: str = "alice", role: Role = Role.USER) -> Client:
        client = Client(self.target, user, role)
        self._clients.append(client)
        return client

    def worker(self, name: str = "w1") -> Worker:
        return Worker(self.client(name, Role.SERVICE), self.bus, name)

    async def fetch_facts(self) -> list[Message]:
        """Facts that wait, unacknowledged."""
        if self._consumer is None:
            self._consumer = self.bus.consumer(
                subjects.FACTS, DURABLE, "fact.>", ack_wait=ACK_WAIT_SECONDS, max_ack_pending=MAX_ACK_PENDING
            )
        messages: list[Message] = []
        while more := await self._consumer.fetch(256, 0.15):
            messages += more
        return messages

    async def record_facts(self) -> None:
        """Lets the fact consumer record what waits."""
        if messages := await self.fetch_facts():
            await self.facts.handle(messages)

    async def send_outbox(self) -> None:
        """Lets the relay send what is due."""
        while await self.relay.relay_once():
            pass

    async def queued(self, task: task_pb2.Task) -> int:
        """The attempt that the newest message of a task in the queue names, 0 without one."""
        kind = task.spec.WhichOneof("work") or "finetune"
        found = await self.bus.last_message(subjects.WORK, subjects.work(kind, task.pool, task.id))
        return fact_pb2.WorkItem.FromString(found[1]).attempt if found else 0

    async def events(self, task_id: str) -> list[event_pb2.TaskEvent]:
        """Every event of a task, after sending what is due."""
        await self.send_outbox()
        newest = await self.bus.last_message(subjects.EVENTS, subjects.events_of(task_id))
        events: list[event_pb2.TaskEvent] = []
        if newest is None:
            return events
        replay = self.bus.replay(subjects.EVENTS, subjects.events_of(task_id))
        async for message in replay:
            events.append(event_pb2.TaskEvent.FromString(message.data))
            if message.sequence >= newest[0]:
                break
        await replay.aclose()
        return events

    async def event_types(self, task_id: str) -> list[str]:
        return [event.type for event in await self.events(task_id)]

    @asynccontextmanager
    async def running(self, settings: Mapping[str, Any] | None = None) -> AsyncIterator[None]:
        """All background duties run for as long as the block."""
        chosen = self.settings.model_copy(update=dict(settings or {}))
        tasks = [
            asyncio.create_task(keep_running(name, duty))
            for name, duty in duties(self.core, self.bus, self.objects, chosen).items()
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def state(self, client: Client, task_id: str, state: task_pb2.State, seconds: float = 10) -> task_pb2.Task:
        """Waits until a task is in a state."""

        async def reached() -> task_pb2.Task | None:
            task = await client.get(task_id)
            return task if task.state == state else None

        return await eventually(reached, seconds, f"state {task_pb2.State.Name(state)}")

    async def close(self) -> None:
        for client in self._clients:
            await client.channel.close()
        if self._consumer is not None:
            await self.bus.release(self._consumer)


@asynccontextmanager
async def running_service(directory: Path, database_url: str, nats_url: str, **settings: Any) -> AsyncIterator[Service]:
    """A task service on a database that it brings to the newest schema; duties do not run by themselves."""
    key = directory / "public.pem"
    key.write_bytes(public_key(PRIVATE_KEY))
    defaults = {
        "port": 0,
        "public_key_file": key,
        "nats_url": nats_url,
        "database_url": database_url,
        "object_store_url": f"file://{directory}/objects",
        "upload_dir": directory / "uploads",
        "drain_seconds": 0.2,
        "backoff_seconds": 0.05,
    }
    chosen = TaskServiceSettings(**(defaults | settings))
    engine = create_engine(database_url)
    await migrate(engine)
    core = Core(Database(engine), Outbox(OUTBOX), chosen.policy(), chosen.checkpoint_quota)
    objects = open_object_store(chosen.object_store_url)
    await objects.prepare()
    bus = await EventBus.connect(nats_url, name="test")
    await bus.ensure_streams()
    service = Service(core, bus, objects, chosen)
    try:
        async with running_server(chosen, servicers(core, bus, objects, service.checks, chosen)) as server:
            service.target = f"127.0.0.1:{server.port}"
            yield service
            await service.close()
    finally:
        await bus.close()
        await objects.close()
        await close_engine(engine)
