"""Wiring of the trainer service."""

import contextlib
from functools import partial

from servicekit import telemetry
from servicekit.grpc_server import Servicer, running_server
from servicekit.objects import directory_of
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
from trainer_service.worker.training import Training, Workshop
from tunesmith.task.v1 import quota_service_pb2_grpc, task_service_pb2
from tunesmith.trainer.v1 import trainer_service_pb2, trainer_service_pb2_grpc
from workerkit.inputs import Inputs
from workerkit.turns import Turns
from workerkit.workplace import open_workplace

NAME = trainer_service_pb2.DESCRIPTOR.services_by_name["TrainerService"].full_name
PRELOAD = "trainer_service.recipes.preload"
ENTRY = "trainer_service.recipes.entry:run_job"


async def run(settings: TrainerSettings) -> None:
    """Serves and trains until TERM or INT."""
    stop = shutdown_event()
    telemetry.configure("trainer-service", settings.otlp_endpoint)
    async with contextlib.AsyncExitStack() as stack:
        place = await stack.enter_async_context(open_workplace(settings, preload=PRELOAD, entry=ENTRY))
        inputs = Inputs.of(settings, place.store, place.channel)
        checks = SpecChecks(inputs.roots, inputs.models, inputs.datasets, cpu_fallback=settings.cpu_fallback)
        places = Places(settings.work_dir, settings.output_root, directory_of(settings.object_store_url))
        estimator = Estimator(places, Calibration(settings.calibration()))

        async def ask_task_service() -> None:
            await place.tasks.ListTasks(task_service_pb2.ListTasksRequest(page_size=1), timeout=5)

        environment = Environment(
            launcher=place.launcher,
            store=place.store,
            bus=place.bus,
            task_service=ask_task_service,
            folders={"scratch space": settings.work_dir, "output directory": settings.output_root},
        )
        questions = DataQuestions(place.launcher)
        quotas = quota_service_pb2_grpc.QuotaServiceStub(place.channel)
        servicer = TrainerServicer(
            checks, estimator, inputs.models, inputs.datasets, environment, questions, Turns(), quotas.GetQuota
        )
        servicers: list[Servicer] = [(trainer_service_pb2_grpc.add_TrainerServiceServicer_to_server, servicer, NAME)]
        shop = Workshop(
            place.store, place.launcher, checks, estimator, DevicePool(), settings.output_root, place.patience
        )
        worker = place.worker("finetune", partial(Training, shop))
        server = await stack.enter_async_context(running_server(settings, servicers, ready=False))
        await stack.enter_async_context(place.reporting_health(server))
        await worker.run(stop)
    telemetry.shutdown()
