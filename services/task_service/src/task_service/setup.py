"""Wiring of the task service."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import grpc

from servicekit import telemetry
from servicekit.bus import EventBus
from servicekit.database import close_engine, create_engine
from servicekit.grpc_client import open_channel
from servicekit.grpc_server import Servicer, running_server
from servicekit.objects import ObjectStore, open_object_store
from servicekit.outbox import Outbox, Relay
from servicekit.runtime import shutdown_event
from servicekit.spooling import Places
from task_service.commands.core import Core
from task_service.commands.create import CreateTask
from task_service.commands.query import Queries
from task_service.commands.steer import Steering
from task_service.commands.work import Work
from task_service.database.access import Database
from task_service.database.models import OUTBOX
from task_service.database.schema import migrate
from task_service.datasets.checking import DatasetChecker, TrainerDatasetChecker
from task_service.datasets.queries import Datasets
from task_service.datasets.receiving import Inbox
from task_service.datasets.servicer import DatasetServicer
from task_service.datasets.storage import StorageLimit
from task_service.datasets.upload import UploadDataset
from task_service.facts.consumer import FactConsumer, facts_waiting
from task_service.garbage import GarbageCollector
from task_service.leader import Duty, Lease, lead
from task_service.parameters.servicer import ParameterServicer
from task_service.quotas.servicer import QuotaServicer
from task_service.reconciler import Reconciler
from task_service.servicer import TaskServicer
from task_service.settings import TaskServiceSettings
from task_service.sources.describe import Sources
from task_service.spec_check import (
    SpecChecker,
    SpecCheckers,
    evaluation_checker,
    export_checker,
    trainer_checker,
)
from task_service.streams.archives import LogArchives
from task_service.streams.deadletters import DeadLetters
from task_service.streams.log_archiver import LogArchiver
from task_service.streams.log_reader import LogReader
from task_service.streams.metrics import MetricReader
from task_service.streams.reaper import Reaper
from task_service.streams.undeliverable import Undeliverable
from task_service.streams.watch import TaskWatcher
from task_service.streams.watch_all import AllTasksWatcher
from task_service.templates.servicer import TemplateServicer
from task_service.templates.use_cases import Templates
from tunesmith.task.v1 import (
    dataset_service_pb2,
    dataset_service_pb2_grpc,
    parameter_service_pb2,
    parameter_service_pb2_grpc,
    quota_service_pb2,
    quota_service_pb2_grpc,
    task_service_pb2,
    task_service_pb2_grpc,
    template_service_pb2,
    template_service_pb2_grpc,
)


@dataclass(frozen=True, slots=True)
class Checks:
    """What other services check for the task service."""

    specs: SpecChecker
    datasets: DatasetChecker | None


def _dataset_servicer(
    core: Core, objects: ObjectStore, checker: DatasetChecker | None, settings: TaskServiceSettings
) -> DatasetServicer:
    places = Places(settings.uploads_at_once, settings.uploads_per_user)
    inbox = Inbox(settings.upload_dir, settings.max_upload_bytes, places)
    inbox.prepare()
    storage = StorageLimit(settings.dataset_bytes_per_user)
    return DatasetServicer(
        upload=UploadDataset(core.database, objects, checker, inbox, storage), datasets=Datasets(core.database)
    )


def servicers(
    core: Core, bus: EventBus, objects: ObjectStore, checks: Checks, settings: TaskServiceSettings
) -> list[Servicer]:
    """What the server serves."""
    task = TaskServicer(
        create=CreateTask(core, checks.specs),
        steering=Steering(core),
        work=Work(core, lambda task_id: facts_waiting(bus, task_id)),
        queries=Queries(core.database),
        watcher=TaskWatcher(bus, core.database),
        all_watcher=AllTasksWatcher(bus, core.database),
        logs=LogReader(bus, objects, LogArchives(core.database)),
        metrics=MetricReader(core.database),
        sources=Sources(core.database),
    )
    dataset = _dataset_servicer(core, objects, checks.datasets, settings)
    tasks = task_service_pb2.DESCRIPTOR.services_by_name["TaskService"]
    datasets = dataset_service_pb2.DESCRIPTOR.services_by_name["DatasetService"]
    templates = template_service_pb2.DESCRIPTOR.services_by_name["TemplateService"]
    quotas = quota_service_pb2.DESCRIPTOR.services_by_name["QuotaService"]
    parameters = parameter_service_pb2.DESCRIPTOR.services_by_name["ParameterService"]
    return [
        (task_service_pb2_grpc.add_TaskServiceServicer_to_server, task, tasks.full_name),
        (dataset_service_pb2_grpc.add_DatasetServiceServicer_to_server, dataset, datasets.full_name),
        (
            template_service_pb2_grpc.add_TemplateServiceServicer_to_server,
            TemplateServicer(Templates(core.database)),
            templates.full_name,
        ),
        (quota_service_pb2_grpc.add_QuotaServiceServicer_to_server, QuotaServicer(core), quotas.full_name),
        (
            parameter_service_pb2_grpc.add_ParameterServiceServicer_to_server,
            ParameterServicer(),
            parameters.full_name,
        ),
    ]


def _channels(settings: TaskServiceSettings) -> dict[str, grpc.aio.Channel]:
    """A channel to each service that checks work, by the kind of work; those without an address are left out."""
    targets = {
        "finetune": settings.trainer_target,
        "evaluate": settings.eval_service_target,
        "export": settings.export_service_target,
    }
    token = settings.service_token()
    return {kind: open_channel(target, token) for kind, target in targets.items() if target}


def _checks(channels: Mapping[str, grpc.aio.Channel], settings: TaskServiceSettings) -> Checks:
    make = {"finetune": trainer_checker, "evaluate": evaluation_checker, "export": export_checker}
    specs = {kind: make[kind](channel, settings.check_spec_seconds) for kind, channel in channels.items()}
    trainer = channels.get("finetune")
    datasets = TrainerDatasetChecker(trainer, settings.check_dataset_seconds) if trainer else None
    return Checks(SpecCheckers(specs), datasets)


def duties(core: Core, bus: EventBus, objects: ObjectStore, settings: TaskServiceSettings) -> Mapping[str, Duty]:
    """What one replica does in the background."""
    return {
        "outbox relay": Relay(core.outbox, core.database.sessions, bus).run,
        "fact consumer": FactConsumer(core, bus).run,
        "reconciler": Reconciler(
            core, bus, interval=settings.reconcile_seconds, grace=settings.dispatch_grace_seconds
        ).run,
        "garbage collector": GarbageCollector(core.database, objects).run,
        "log archiver": LogArchiver(bus, objects, LogArchives(core.database)).run,
        "dead letters": DeadLetters(bus, Undeliverable(core)).run,
        "reaper": Reaper(core.database, bus, objects).run,
    }


async def run(settings: TaskServiceSettings) -> None:
    """Serves until TERM or INT."""
    stop = shutdown_event()
    telemetry.configure("task-service", settings.otlp_endpoint)
    engine = create_engine(settings.database_url)
    await migrate(engine)
    core = Core(Database(engine), Outbox(OUTBOX), settings.policy(), settings.checkpoint_quota)
    objects = open_object_store(settings.object_store_url)
    await objects.prepare()
    bus = await EventBus.connect(
        settings.nats_url,
        name="task-service",
        user=settings.nats_user,
        password=settings.nats_password_value(),
    )
    await bus.ensure_streams()
    channels = _channels(settings)
    checks = _checks(channels, settings)
    background = asyncio.create_task(
        lead(Lease(core.database, settings.leader_seconds), duties(core, bus, objects, settings))
    )
    try:
        async with running_server(settings, servicers(core, bus, objects, checks, settings)):
            stopped = asyncio.create_task(stop.wait())
            await asyncio.wait({stopped, background}, return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if background.done():
                background.result()
    finally:
        background.cancel()
        await asyncio.gather(background, return_exceptions=True)
        for channel in channels.values():
            await channel.close()
        await bus.close()
        await objects.close()
        await close_engine(engine)
        telemetry.shutdown()
