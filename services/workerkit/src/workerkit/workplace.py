"""What a service with workers has open while it runs, from settings to the worker itself."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc

from servicekit.bus import EventBus
from servicekit.grpc_client import open_channel
from servicekit.grpc_server import Server
from servicekit.objects import ObjectStore, open_object_store
from tunesmith.task.v1 import task_service_pb2, task_service_pb2_grpc
from workerkit.attempt import Post
from workerkit.fork_launcher import ForkLauncher, running_launcher
from workerkit.loop import Worker, new_worker_id
from workerkit.scratch import scratch_directory
from workerkit.settings import WorkerSettings
from workerkit.supervision import Patience
from workerkit.work import MakeWork


@dataclass(frozen=True, slots=True)
class Workplace:
    """Connections, scratch space and fork server of one service; channel and tasks lead to the task service."""

    settings: WorkerSettings
    worker_id: str
    store: ObjectStore
    bus: EventBus
    channel: grpc.aio.Channel
    tasks: "task_service_pb2_grpc.TaskServiceAsyncStub"
    launcher: ForkLauncher
    scratch: Path

    @property
    def patience(self) -> Patience:
        """How long children may be silent, and may take to end."""
        return Patience(self.settings.stall_seconds, self.settings.stop_grace_seconds)

    def worker(self, kind: str, make_work: MakeWork) -> Worker:
        """The worker for tasks of a kind."""
        lease = self.settings.lease_seconds
        return Worker(
            Post(self.worker_id, self.bus, self._heartbeat, self.scratch, lease, lease / 3),
            make_work,
            self.tasks,
            self.launcher,
            kind=kind,
            pool=self.settings.pool,
            slots=self.settings.slots,
            release_seconds=self.settings.release_seconds,
        )

    async def _heartbeat(
        self, request: task_service_pb2.HeartbeatTaskRequest, seconds: float
    ) -> task_service_pb2.HeartbeatTaskResponse:
        return await self.tasks.HeartbeatTask(request, timeout=seconds)

    @contextlib.asynccontextmanager
    async def reporting_health(self, server: Server) -> AsyncIterator[None]:
        """While it lasts the server says that it is healthy when children can be started."""
        reporting = asyncio.create_task(self._report_health(server))
        try:
            yield
        finally:
            reporting.cancel()

    async def _report_health(self, server: Server) -> None:
        while True:
            await self.launcher.wait_able()
            await server.serving(True)
            await self.launcher.wait_unable()
            await server.serving(False)


@contextlib.asynccontextmanager
async def open_workplace(settings: WorkerSettings, *, preload: str, entry: str) -> AsyncIterator[Workplace]:
    """A workplace whose fork server imports preload and calls entry (`module:function`) in its children."""
    worker_id = new_worker_id()
    store = open_object_store(settings.object_store_url)
    await store.prepare()
    bus = await EventBus.connect(
        settings.nats_url, name=worker_id, user=settings.nats_user, password=settings.nats_password_value()
    )
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(store.close)
        stack.push_async_callback(bus.close)
        channel = await stack.enter_async_context(open_channel(settings.task_service_target, settings.service_token()))
        scratch = stack.enter_context(scratch_directory(settings.work_dir, worker_id))
        launching = running_launcher(preload=preload, entry=entry, warm_seconds=settings.warm_seconds)
        launcher = await stack.enter_async_context(launching)
        tasks = task_service_pb2_grpc.TaskServiceStub(channel)
        yield Workplace(settings, worker_id, store, bus, channel, tasks, launcher, scratch)
