"""Wiring of the trainer service."""

import asyncio
import contextlib
from functools import partial

from modelkit.base_models import BaseModels
from modelkit.datasets import DataCache
from modelkit.paths import AllowedRoots
from servicekit import telemetry
from servicekit.bus import EventBus
from servicekit.grpc_client import open_channel
from servicekit.grpc_server import Server, Servicer, running_server
from servicekit.objects import directory_of, open_object_store
from servicekit.runtime import shutdown_event
from trainer_service.checks import SpecChecks
from trainer_service.data_questions import DataQuestions
from trainer_service.devices import DevicePool
from trainer_service.environment import Environment
from trainer_service.estimates.calibration import Calibration
from trainer_service.estimates.disk import Places
from trainer_service.estimates.estimator import Estimator
from trainer_service.servicer import TrainerServicer
from trainer_service.settings import TrainerSettings
from trainer_service.turns import Turns
from trainer_service.worker.training import Training, Workshop
from tunesmith.task.v1 import dataset_service_pb2_grpc, task_service_pb2, task_service_pb2_grpc
from tunesmith.trainer.v1 import trainer_service_pb2, trainer_service_pb2_grpc
from workerkit.attempt import Post
from workerkit.datasets import DatasetChecks
from workerkit.fork_launcher import ForkLauncher, running_launcher
from workerkit.loop import Worker, new_worker_id
from workerkit.remote_datasets import RemoteDatasets
from workerkit.scratch import scratch_directory
from workerkit.supervision import Patience

NAME = trainer_service_pb2.DESCRIPTOR.services_by_name["TrainerService"].full_name
PRELOAD = "trainer_service.recipes.preload"
# Beneath the scratch space: base models that had to be converted, kept for the next task.
CONVERTED = "converted-models"
ENTRY = "trainer_service.recipes.entry:run_job"


async def run(settings: TrainerSettings) -> None:
    """Serves and trains until TERM or INT."""
    stop = shutdown_event()
    telemetry.configure("trainer-service", settings.otlp_endpoint)
    worker_id = new_worker_id()
    store = open_object_store(settings.object_store_url)
    await store.prepare()
    bus = await EventBus.connect(
        settings.nats_url, name=worker_id, user=settings.nats_user, password=settings.nats_password_value()
    )
    roots = AllowedRoots(settings.roots(), private=settings.private())
    models = BaseModels(roots, conversions=DataCache(settings.work_dir / CONVERTED, settings.converted_models_bytes))
    places = Places(settings.work_dir, settings.output_root, directory_of(settings.object_store_url))
    estimator = Estimator(places, Calibration(settings.calibration()))
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(store.close)
        stack.push_async_callback(bus.close)
        channel = await stack.enter_async_context(open_channel(settings.task_service_target, settings.service_token()))
        tasks = task_service_pb2_grpc.TaskServiceStub(channel)
        uploads = dataset_service_pb2_grpc.DatasetServiceStub(channel)
        cache = DataCache(settings.work_dir / "data-cache", settings.data_cache_bytes)
        remote = RemoteDatasets(store, settings.object_store_url, uploads.GetDataset, cache)
        known_datasets = DatasetChecks(cache, remote)
        checks = SpecChecks(roots, models, known_datasets, cpu_fallback=settings.cpu_fallback)
        scratch = stack.enter_context(scratch_directory(settings.work_dir, worker_id))
        launcher = await stack.enter_async_context(running_launcher(preload=PRELOAD, entry=ENTRY))

        async def heartbeat(
            request: task_service_pb2.HeartbeatTaskRequest, seconds: float
        ) -> task_service_pb2.HeartbeatTaskResponse:
            return await tasks.HeartbeatTask(request, timeout=seconds)

        async def ask_task_service() -> None:
            await tasks.ListTasks(task_service_pb2.ListTasksRequest(page_size=1), timeout=5)

        environment = Environment(
            launcher=launcher,
            store=store,
            bus=bus,
            task_service=ask_task_service,
            folders={"scratch space": settings.work_dir, "output directory": settings.output_root},
        )
        questions = DataQuestions(launcher)
        servicer = TrainerServicer(checks, estimator, models, known_datasets, environment, questions, Turns())
        servicers: list[Servicer] = [(trainer_service_pb2_grpc.add_TrainerServiceServicer_to_server, servicer, NAME)]
        patience = Patience(settings.stall_seconds, settings.stop_grace_seconds)
        shop = Workshop(store, launcher, checks, estimator, DevicePool(), settings.output_root, patience)
        worker = Worker(
            Post(worker_id, bus, heartbeat, scratch, settings.lease_seconds, settings.lease_seconds / 3),
            partial(Training, shop),
            tasks,
            launcher,
            kind="finetune",
            pool=settings.pool,
            slots=settings.slots,
            release_seconds=settings.release_seconds,
        )
        server = await stack.enter_async_context(running_server(settings, servicers, ready=False))
        health = asyncio.create_task(report_health(server, launcher))
        stack.callback(health.cancel)
        await worker.run(stop)
    telemetry.shutdown()


async def report_health(server: Server, launcher: ForkLauncher) -> None:
    """Healthy means ready to train: the fork server is warm."""
    while True:
        await launcher.wait_warm()
        await server.serving(True)
        await launcher.wait_cold()
        await server.serving(False)
