"""A worker with everything real around it, but for the task service: a small server that knows just enough of tasks."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.message import Message as ProtoMessage

from servicekit import subjects
from servicekit.bus import EventBus, Message, PullConsumer
from servicekit.errors import Unavailable
from servicekit.grpc_client import open_channel
from servicekit.objects import ObjectStore
from tests.support.waiting import eventually
from tunesmith.events.v1 import fact_pb2 as facts
from tunesmith.task.v1 import spec_pb2, task_pb2, task_service_pb2, task_service_pb2_grpc
from workerkit.attempt import Post
from workerkit.fork_launcher import ForkLauncher
from workerkit.loop import Worker, new_worker_id
from workerkit.work import MakeWork

NAME = task_service_pb2.DESCRIPTOR.services_by_name["TaskService"].full_name


@dataclass
class Record:
    """A task as the desk knows it."""

    task: task_pb2.Task
    directive: int = task_service_pb2.DIRECTIVE_CONTINUE
    worker: str = ""
    heartbeats: int = 0
    claims: int = 0
    claimed: float = 0.0
    answered: list[int] = field(default_factory=list)
    pids: set[int] = field(default_factory=set)
    refuse_claims: list[Exception] = field(default_factory=list)
    resume_from: list[task_pb2.Checkpoint] = field(default_factory=list)
    resume_exact: bool = False
    dependency_outputs: dict[str, str] = field(default_factory=dict)
    allowance: task_service_pb2.CheckpointAllowance | None = None
    source: task_service_pb2.TaskSource | None = None


class Desk(task_service_pb2_grpc.TaskServiceServicer):
    """A task service that starts attempts, answers heartbeats, and reads facts, without any rules of its own."""

    def __init__(self, bus: EventBus, pool: str, kind: str = "finetune") -> None:
        self.bus = bus
        self.kind = kind
        self.pool = pool
        self.lease_seconds = 30.0
        self.records: dict[str, Record] = {}
        self.consumers: dict[str, PullConsumer] = {}
        self.received: dict[str, list[facts.Fact]] = {}

    async def submit(self, spec: ProtoMessage, labels: dict[str, str] | None = None) -> str:
        """Puts a new task into the queue; spec is that of the desk's kind."""
        task_id = secrets.token_hex(13)
        task = task_pb2.Task(
            id=task_id, spec=spec_pb2.TaskSpec(**{self.kind: spec}), attempt=0, run=1, labels=labels or {}
        )
        self.records[task_id] = Record(task)
        self.received[task_id] = []
        self.consumers[task_id] = self.bus.consumer(subjects.FACTS, f"desk-{task_id}", subjects.fact(task_id))
        await self.dispatch(task_id)
        return task_id

    async def dispatch(self, task_id: str) -> None:
        """Queues the next attempt."""
        attempt = self.records[task_id].task.attempt + 1
        item = facts.WorkItem(task_id=task_id, attempt=attempt)
        subject = subjects.work(self.kind, self.pool, task_id)
        await self.bus.publish(subject, item.SerializeToString(), message_id=f"{task_id}.{attempt}")

    async def steer(self, task_id: str, directive: int) -> None:
        """Wants something of a task and says so, as an event does."""
        self.records[task_id].directive = directive
        await self.bus.publish(subjects.event("task.stopping", task_id), b"")

    async def facts_until(self, task_id: str, kind: str, seconds: float = 20.0) -> list[facts.Fact]:
        """Everything a worker has said, up to the next fact of a kind (or an end of the attempt)."""
        seen = self.received[task_id]
        deadline = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < deadline:
            for message in await self.consumers[task_id].fetch(1, 0.2):
                await message.ack()
                fact = facts.Fact.FromString(message.data)
                if (fact.attempt, fact.sequence) in {(known.attempt, known.sequence) for known in seen[-100:]}:
                    continue  # delivered again, because the broker was killed before it knew of the acknowledgement
                seen.append(fact)
                payload = seen[-1].WhichOneof("payload")
                if payload == kind:
                    return seen
                if payload in ("completed", "failed", "stopped", "released"):
                    raise AssertionError(f"waited for {kind}, but: {seen[-1]}")
        raise TimeoutError(f"no fact {kind} came; only {[fact.WhichOneof('payload') for fact in seen]}")

    async def trained_to(self, task_id: str, step: int) -> int:
        """Waits until a step is measured; the process id of the child."""
        received = self.received[task_id]
        while max((point.step for batch in payloads(received, "metrics") for point in batch.points), default=0) < step:
            await self.facts_until(task_id, "metrics")
        return int(payloads(received, "child_started")[-1].pid)

    async def log(self, task_id: str, attempt: int = 1) -> list[str]:
        """The log of an attempt, once its last batch is there."""
        subject = subjects.log(task_id)
        found = await eventually(lambda: self._final(subject, attempt))
        assert found
        lines: list[str] = []
        stream = self.bus.replay(subjects.LOGS, subject)
        async for message in stream:
            batch = facts.LogBatch.FromString(message.data)
            if batch.attempt == attempt:
                lines += [line.text for line in batch.lines]
                if batch.final:
                    break
        await stream.aclose()
        return lines

    async def _final(self, subject: str, attempt: int) -> bool:
        newest = await self.bus.last_message(subjects.LOGS, subject)
        batch = facts.LogBatch.FromString(newest[1]) if newest else facts.LogBatch()
        return batch.final and batch.attempt == attempt

    async def waiting_messages(self, task_id: str) -> int:
        """How many messages of a task the queue has."""
        subject = subjects.work(self.kind, self.pool, task_id)
        return 0 if await self.bus.last_message(subjects.WORK, subject) is None else 1

    async def queue_is_empty(self, task_id: str) -> None:
        """Waits until the queue has no message of a task."""

        async def empty() -> bool:
            return await self.waiting_messages(task_id) == 0

        await eventually(empty)

    # What workers call.

    async def ClaimTask(self, request: Any, context: Any) -> task_service_pb2.ClaimTaskResponse:
        record = self.records[request.task_id]
        record.claims += 1
        if record.refuse_claims:
            raise record.refuse_claims.pop(0)
        record.worker, record.claimed = request.worker, time.time()
        record.task.attempt += 1
        return task_service_pb2.ClaimTaskResponse(
            task=record.task,
            resume_from=record.resume_from,
            resume_exact=record.resume_exact,
            lease_seconds=self.lease_seconds,
            dependency_outputs=record.dependency_outputs,
            allowance=record.allowance,
            source=record.source,
        )

    async def HeartbeatTask(self, request: Any, context: Any) -> task_service_pb2.HeartbeatTaskResponse:
        record = self.records[request.task_id]
        record.heartbeats += 1
        record.pids.add(request.pid)
        ours = request.attempt == record.task.attempt and request.worker == record.worker
        directive = record.directive if ours else task_service_pb2.DIRECTIVE_ABANDON
        record.answered.append(directive)
        return task_service_pb2.HeartbeatTaskResponse(directive=directive, allowance=record.allowance)


def payloads(received: list[facts.Fact], kind: str) -> list[Any]:
    """The payloads of one kind."""
    return [getattr(fact, kind) for fact in received if fact.WhichOneof("payload") == kind]


@asynccontextmanager
async def running_worker(
    desk: Desk,
    port: int,
    nats_url: str,
    work: Path,
    launcher: ForkLauncher,
    make_work: MakeWork,
    *,
    slots: int = 1,
    release_seconds: float = 10.0,
    redelivery_seconds: float = 30.0,
    extend_every: float | None = None,
) -> AsyncIterator["RunningWorker"]:
    """A worker in this process, stopped at the end of the block; extend_every is how often it tells the queue."""
    bus = await EventBus.connect(nats_url, name="worker")
    channel = open_channel(f"127.0.0.1:{port}")
    tasks = task_service_pb2_grpc.TaskServiceStub(channel)

    async def heartbeat(request: ProtoMessage, seconds: float) -> Any:
        return await tasks.HeartbeatTask(request, timeout=seconds)

    name = new_worker_id()
    stop = asyncio.Event()
    async with channel:
        worker = Recording(
            Post(name, bus, heartbeat, work / name, redelivery_seconds, extend_every or redelivery_seconds / 3),
            make_work,
            tasks,
            launcher,
            kind=desk.kind,
            pool=desk.pool,
            slots=slots,
            release_seconds=release_seconds,
        )
        running = asyncio.create_task(worker.run(stop))
        try:
            yield RunningWorker(name, stop, running, work / name, launcher, worker.deliveries)
            assert not running.done() or running.result() is None
        finally:
            stop.set()
            await asyncio.wait_for(running, 30)
            await bus.close()


@dataclass
class RunningWorker:
    """A worker under test."""

    name: str
    stop: asyncio.Event
    running: "asyncio.Task[None]"
    scratch: Path
    launcher: ForkLauncher
    deliveries: list[str]


class Recording(Worker):
    """A worker that notes which task each message was about."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.deliveries: list[str] = []

    def _begin(self, message: Message) -> None:
        self.deliveries.append(message.subject.rpartition(".")[2])
        super()._begin(message)


class Troubled:
    """An object store that cannot be reached for a while; with refuse only keys that contain it are refused."""

    def __init__(self, store: ObjectStore, refuse: str = "") -> None:
        self._store = store
        self._refuse = refuse
        self.down = False
        self.refused = 0
        self.puts: list[str] = []

    def _check(self, key: str) -> None:
        if self.down and self._refuse in key:
            self.refused += 1
            raise Unavailable("the store is down")
        self.puts.append(key)

    async def put_file(self, key: str, path: Path) -> None:
        self._check(key)
        await self._store.put_file(key, path)

    async def put_bytes(self, key: str, data: bytes, if_absent: bool = False) -> None:
        self._check(key)
        await self._store.put_bytes(key, data, if_absent)

    async def get_file(self, key: str, path: Path) -> None:
        self._check(key)
        await self._store.get_file(key, path)

    async def get_bytes(self, key: str) -> bytes:
        self._check(key)
        return await self._store.get_bytes(key)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


async def stored(store: ObjectStore, prefix: str) -> list[str]:
    """The keys below a prefix, without it."""
    return sorted([info.key.removeprefix(prefix) async for info in store.list(prefix)])
