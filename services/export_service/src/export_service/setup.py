"""Wiring of the export service."""

import asyncio
import contextlib
from functools import partial

from export_service.checks import ExportChecks
from export_service.disk import Places
from export_service.exports import Exports
from export_service.models import StoredModels
from export_service.rows import TrainingRows
from export_service.servicer import ExportServicer
from export_service.settings import ExportSettings
from export_service.work import ExportWork, Workshop
from servicekit import telemetry
from servicekit.grpc_server import Servicer, running_server
from servicekit.objects import directory_of
from servicekit.runtime import shutdown_event
from tunesmith.export.v1 import export_service_pb2, export_service_pb2_grpc
from workerkit.inputs import Inputs
from workerkit.turns import InThread, Turns
from workerkit.workplace import open_workplace

NAME = export_service_pb2.DESCRIPTOR.services_by_name["ExportService"].full_name
PRELOAD = "export_service.recipes.preload"
ENTRY = "export_service.recipes.entry:run_job"


async def run(settings: ExportSettings) -> None:
    """Serves and exports until TERM or INT."""
    stop = shutdown_event()
    telemetry.configure("export-service", settings.otlp_endpoint)
    async with contextlib.AsyncExitStack() as stack:
        place = await stack.enter_async_context(open_workplace(settings, preload=PRELOAD, entry=ENTRY))
        inputs = Inputs.of(settings, place.store, place.channel)
        places = Places(settings.work_dir, settings.output_root, directory_of(settings.object_store_url))
        turns = Turns()

        def checks_in(in_thread: InThread) -> tuple[ExportChecks, TrainingRows]:
            rows = TrainingRows(inputs.roots, inputs.datasets, in_thread)
            return ExportChecks(inputs.roots, inputs.models, place.store, rows, places, in_thread=in_thread), rows

        asked, _ = checks_in(turns.run)
        exports, models = Exports(place.tasks, place.store), StoredModels(place.tasks, place.store)
        servicer = ExportServicer(place.tasks, exports, models, asked, turns)
        servicers: list[Servicer] = [(export_service_pb2_grpc.add_ExportServiceServicer_to_server, servicer, NAME)]
        checks, rows = checks_in(asyncio.to_thread)
        shop = Workshop(place.store, place.launcher, checks, rows, settings.output_root, place.patience)
        worker = place.worker("export", partial(ExportWork, shop))
        server = await stack.enter_async_context(running_server(settings, servicers, ready=False))
        await stack.enter_async_context(place.reporting_health(server))
        await worker.run(stop)
    telemetry.shutdown()
