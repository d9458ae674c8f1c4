"""The service as a process: starts from settings, ends on TERM, forgets nothing when it is killed."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from servicekit.bus import EventBus
from servicekit.errors import TunesmithError, Unavailable
from servicekit.identity import Role, public_key
from services.task_service.tests.harness import PRIVATE_KEY, Client, Worker
from tests.support.nats import NatsServer
from tests.support.ports import free_port
from tests.support.process import ServerProcess
from tests.support.waiting import eventually
from tunesmith.events.v1 import fact_pb2
from tunesmith.task.v1 import event_pb2, task_pb2

IDLE_MEMORY_LIMIT = 150 * 1024 * 1024


def healthy(port: int) -> bool:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


class Running:
    """The process, and where it listens."""

    def __init__(self, directory: Path, database_url: str, nats_url: str) -> None:
        self.port = free_port()
        (directory / "public.pem").write_bytes(public_key(PRIVATE_KEY))
        environment = {
            "TUNESMITH_PORT": str(self.port),
            "TUNESMITH_DATABASE_URL": database_url,
            "TUNESMITH_NATS_URL": nats_url,
            "TUNESMITH_OBJECT_STORE_URL": f"file://{directory}/objects",
            "TUNESMITH_PUBLIC_KEY_FILE": str(directory / "public.pem"),
            "TUNESMITH_TRAINER_TARGET": f"127.0.0.1:{free_port()}",
            "TUNESMITH_LEADER_SECONDS": "0.6",
            "TUNESMITH_RECONCILE_SECONDS": "0.3",
            "TUNESMITH_LEASE_SECONDS": "2",
        }
        self.log = directory / f"task_service-{self.port}.log"
        self.process = ServerProcess(
            [sys.executable, "-m", "task_service"], self.log, ready=lambda: healthy(self.port), environment=environment
        )

    @property
    def memory(self) -> int:
        """Resident bytes."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def running(tmp_path: Path, database_url: str, nats_server: NatsServer) -> Iterator[Running]:
    service = Running(tmp_path, database_url, nats_server.url)
    with service.process:
        yield service


@asynccontextmanager
async def client_of(service: Running, user: str = "alice", role: Role = Role.USER) -> AsyncIterator[Client]:
    client = Client(f"127.0.0.1:{service.port}", user, role)
    yield client
    await client.channel.close()


async def test_it_is_light_and_ends_on_term(running: Running) -> None:
    async with client_of(running) as alice:
        await alice.create()
    assert running.memory < IDLE_MEMORY_LIMIT
    running.process.send(signal.SIGTERM)
    await eventually(lambda: not running.process.running, 40)
    assert "Traceback" not in running.log.read_text()


async def test_wrong_settings_are_all_named(tmp_path: Path) -> None:
    environment = {**os.environ, "TUNESMITH_LEASE_SECONDS": "-1", "TUNESMITH_MAX_ATTEMPTS": "none"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "task_service", env=environment, stderr=asyncio.subprocess.PIPE
    )
    _, printed = await process.communicate()
    assert process.returncode == 2
    assert b"TUNESMITH_LEASE_SECONDS" in printed
    assert b"TUNESMITH_MAX_ATTEMPTS" in printed


async def submit(client: Client, number: int) -> str:
    """The task of a request that is made until it succeeds."""
    while True:
        try:
            return (await client.create(f"t{number}", request_id=f"r{number}")).id
        except Exception:  # noqa: BLE001 - the service is being killed
            await asyncio.sleep(0.05)


async def work(worker: Worker, bus: EventBus) -> None:
    """Completes every task that the queue hands out; what fails on the way is done again, as a worker must."""
    consumer = bus.consumer("WORK", "finetune-default", "work.finetune.default.>", ack_wait=2.0)
    while True:
        for message in await consumer.fetch(1):
            item = fact_pb2.WorkItem.FromString(message.data)
            try:
                attempt = await worker.claim(item.task_id, item.attempt)
                await attempt.say(metrics=attempt.metrics(attempt.number, loss=1.0))
                await attempt.say(completed=attempt.completed())
                await message.ack_sync()
            except TunesmithError as error:
                with suppress(TunesmithError):
                    await (message.term() if "drop it" in str(error) else message.nak(0.1))


@asynccontextmanager
async def working(service: Running, nats_url: str) -> AsyncIterator[EventBus]:
    """A worker, and its connection to the broker; both end with the block, however that does."""
    bus = await EventBus.connect(nats_url, name="test-worker")
    await bus.ensure_streams()
    async with client_of(service, "w1", Role.SERVICE) as client:
        running = asyncio.create_task(work(Worker(client, bus, "w1"), bus))
        try:
            yield bus
        finally:
            running.cancel()
            (ending,) = await asyncio.gather(running, return_exceptions=True)
            await bus.close()
            assert isinstance(ending, asyncio.CancelledError), "the worker died"


@pytest.mark.timeout(180)  # the service is started four times
async def test_killed_at_any_time_it_finishes_every_task_once(running: Running, nats_server: NatsServer) -> None:
    """Submits, works and kills at the same time; each request id makes one task, each task completes once."""
    async with client_of(running) as alice, working(running, nats_server.url) as bus:
        submitting = [asyncio.create_task(submit(alice, number)) for number in range(30)]

        async def completed(enough: int) -> bool:
            try:
                page = await alice.page(states=[task_pb2.STATE_COMPLETED], with_total=True)
            except Unavailable:
                return False
            return page.total_size >= enough

        for enough in (3, 10, 18):
            await eventually(lambda enough=enough: completed(enough), 30)
            running.process.kill()
            running.process.start()
        ids = await asyncio.gather(*submitting)
        assert len(set(ids)) == 30

        await eventually(lambda: completed(30), 40)
        everything = await alice.page(with_total=True)
        assert everything.total_size == 30
        for task_id in ids:
            types = [event.type async for event in replayed(bus, task_id)]
            assert types.count("task.created") == types.count("task.completed") == 1


async def replayed(bus: EventBus, task_id: str) -> AsyncIterator[event_pb2.TaskEvent]:
    subject = f"tunesmith.v1.*.*.{task_id}"

    async def complete() -> bool:
        return await bus.last_message("EVENTS", f"tunesmith.v1.task.completed.{task_id}") is not None

    await eventually(complete)
    newest = await bus.last_message("EVENTS", subject)
    assert newest is not None
    replay = bus.replay("EVENTS", subject)
    async for message in replay:
        yield event_pb2.TaskEvent.FromString(message.data)
        if message.sequence >= newest[0]:
            break
    await replay.aclose()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_two_replicas_share_the_work(
    tmp_path: Path, database_url: str, nats_server: NatsServer, running: Running
) -> None:
    second = Running(tmp_path, database_url, nats_server.url)
    with second.process:
        async with client_of(running) as one, client_of(second) as two:
            results = await asyncio.gather(
                *((one if number % 2 else two).create(request_id=f"r{number // 2}") for number in range(40))
            )
            assert len({task.id for task in results}) == 20
            bus = await EventBus.connect(nats_server.url, name="test")
            for task_id in {task.id for task in results}:

                async def queued(task_id: str = task_id) -> bool:
                    return await bus.last_message("WORK", f"work.finetune.default.{task_id}") is not None

                await eventually(queued)
            await bus.close()
            stops = await asyncio.gather(*(client.stop(results[0].id) for client in (one, two)), return_exceptions=True)
            assert sum(isinstance(item, task_pb2.Task) for item in stops) == 1
