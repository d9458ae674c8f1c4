"""Wiring of the evaluation service."""

import contextlib
from functools import partial

from eval_service.checks import EvaluationChecks
from eval_service.evaluations import Evaluations
from eval_service.generation.setup import running_generation
from eval_service.servicer import EvalServicer
from eval_service.settings import EvalSettings
from eval_service.work import EvaluationShop, EvaluationWork
from servicekit import telemetry
from servicekit.grpc_server import Servicer, running_server
from servicekit.runtime import shutdown_event
from tunesmith.eval.v1 import eval_service_pb2, eval_service_pb2_grpc
from workerkit.inputs import Inputs
from workerkit.turns import Turns
from workerkit.workplace import open_workplace

NAME = eval_service_pb2.DESCRIPTOR.services_by_name["EvalService"].full_name
PRELOAD = "eval_service.recipes.preload"
ENTRY = "eval_service.recipes.entry:run_job"


async def run(settings: EvalSettings) -> None:
    """Serves, evaluates and generates until TERM or INT."""
    stop = shutdown_event()
    telemetry.configure("eval-service", settings.otlp_endpoint)
    async with contextlib.AsyncExitStack() as stack:
        place = await stack.enter_async_context(open_workplace(settings, preload=PRELOAD, entry=ENTRY))
        inputs = Inputs.of(settings, place.store, place.channel)
        checks = EvaluationChecks(inputs.roots, inputs.models, inputs.datasets, place.store)
        generating = running_generation(
            settings,
            scratch=place.scratch,
            work_dir=settings.work_dir,
            tasks=place.tasks,
            store=place.store,
            base_models=inputs.models,
            launcher=place.launcher,
        )
        generation = await stack.enter_async_context(generating)
        evaluations = Evaluations(place.tasks, place.store)
        servicer = EvalServicer(place.tasks, evaluations, checks, generation, Turns())
        servicers: list[Servicer] = [(eval_service_pb2_grpc.add_EvalServiceServicer_to_server, servicer, NAME)]
        suites = settings.suite_stall_seconds
        shop = EvaluationShop(place.store, place.launcher, checks, settings.output_root, place.patience, suites)
        worker = place.worker("evaluate", partial(EvaluationWork, shop))
        server = await stack.enter_async_context(running_server(settings, servicers, ready=False))
        await stack.enter_async_context(place.reporting_health(server))
        await worker.run(stop)
    telemetry.shutdown()
