"""The gRPC face of the trainer: converts, calls, converts."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, TypeVar

from modelkit import datasets
from modelkit.base_models import BaseModels
from modelkit.datasets import DatasetFiles, Reading
from modelkit.errors import ModelkitError
from servicekit.errors import InvalidArgument, Problem
from servicekit.grpc_server import token_of
from servicekit.identity import current_principal
from trainer_service import devices
from trainer_service.checks import SpecChecks
from trainer_service.data_questions import DataQuestions
from trainer_service.dataset_answers import problem_message, reported, sample_message
from trainer_service.environment import Environment
from trainer_service.estimates.answer import answer
from trainer_service.estimates.checked import estimate_checked, submit_problems
from trainer_service.estimates.estimator import Estimator
from trainer_service.estimates.quota import GetQuota, add_quota
from tunesmith.task.v1 import spec_pb2
from tunesmith.trainer.v1 import trainer_service_pb2 as trainer
from tunesmith.trainer.v1 import trainer_service_pb2_grpc
from workerkit.datasets import DatasetChecks, reading_of
from workerkit.turns import Turns

T = TypeVar("T")

DEFAULT_PREVIEW_ROWS = 5


class TrainerServicer(trainer_service_pb2_grpc.TrainerServiceServicer):
    """Answers about devices, models, data and specifications. What reads a user's files waits for the user's turn."""

    def __init__(
        self,
        checks: SpecChecks,
        estimator: Estimator,
        models: BaseModels,
        known_datasets: DatasetChecks,
        environment: Environment,
        questions: DataQuestions,
        turns: Turns,
        get_quota: GetQuota,
    ) -> None:
        self._checks = checks
        self._estimator = estimator
        self._models = models
        self._datasets = known_datasets
        self._environment = environment
        self._questions = questions
        self._turns = turns
        self._get_quota = get_quota

    async def ListDevices(self, request: trainer.ListDevicesRequest, context: Any) -> trainer.ListDevicesResponse:
        found = await asyncio.to_thread(lambda: [devices.cpu(), *devices.gpus()])
        return trainer.ListDevicesResponse(devices=[_device(device) for device in found])

    async def CheckEnvironment(
        self, request: trainer.CheckEnvironmentRequest, context: Any
    ) -> trainer.CheckEnvironmentResponse:
        checks = await self._environment.check()
        answers = [
            trainer.EnvironmentCheck(
                name=check.name, ok=check.ok, found=check.found, advice="" if check.ok else check.advice
            )
            for check in checks
        ]
        return trainer.CheckEnvironmentResponse(checks=answers, ready=all(check.ok for check in checks if check.needed))

    async def EstimateResources(
        self, request: trainer.EstimateResourcesRequest, context: Any
    ) -> trainer.EstimateResourcesResponse:
        token = token_of(context)
        async with self._turn():
            estimate = await self._turns.run(self._estimate, request.spec, token)
        await add_quota(estimate, self._get_quota, token)
        return estimate

    async def ListBaseModels(
        self, request: trainer.ListBaseModelsRequest, context: Any
    ) -> trainer.ListBaseModelsResponse:
        offered = await asyncio.to_thread(self._models.offered, request.modality)
        models = [
            trainer.BaseModel(
                id=model.entry.id,
                name=model.entry.name,
                family=model.entry.family,
                parameters=model.entry.parameters,
                description=model.entry.description,
                vram_gb=model.entry.vram_gb,
                local=model.local,
            )
            for model in offered
        ]
        return trainer.ListBaseModelsResponse(models=models)

    async def ValidateDataset(
        self, request: trainer.ValidateDatasetRequest, context: Any
    ) -> trainer.ValidateDatasetResponse:
        async with self._turn():
            report = await self._turns.run(self._read, request.dataset, token_of(context), self._datasets.check)
        return trainer.ValidateDatasetResponse(
            valid=not report.problems,
            rows=report.rows,
            format=report.format,
            problems=[problem_message(problem) for problem in report.problems],
        )

    async def PreviewDataset(
        self, request: trainer.PreviewDatasetRequest, context: Any
    ) -> trainer.PreviewDatasetResponse:
        rows = request.rows or DEFAULT_PREVIEW_ROWS
        async with self._turn():
            found = await self._turns.run(
                self._read, request.dataset, token_of(context), lambda files: datasets.preview(files, rows)
            )
        return trainer.PreviewDatasetResponse(samples=[sample_message(row) for row in found])

    async def ReportDataset(self, request: trainer.ReportDatasetRequest, context: Any) -> trainer.ReportDatasetResponse:
        reading = reading_of(request.dataset, request.objective) if request.objective else None
        async with self._turn():
            files = await self._turns.run(
                self._read, request.dataset, token_of(context), lambda found: found, reading=reading
            )
            model = await self._turns.run(self._model, request.base_model) if request.base_model else None
            answer = await self._questions.report(request, files, model, self._datasets.cache.root)
        return reported(answer)

    async def CheckSpec(self, request: trainer.CheckSpecRequest, context: Any) -> trainer.CheckSpecResponse:
        finetune = request.spec.finetune
        async with self._turn():
            checked = await self._turns.run(self._checks.check, request.spec, token=token_of(context))
            found = [
                *checked.problems,
                *await self._turns.run(submit_problems, self._estimator, finetune, checked),
                *await self._questions.problems(finetune, checked, self._datasets.cache.root),
            ]
        problems = [trainer.SpecProblem(field=item.field, message=item.message) for item in found]
        return trainer.CheckSpecResponse(problems=problems)

    def _turn(self) -> AbstractAsyncContextManager[None]:
        return self._turns.of(current_principal().user)

    def _estimate(self, spec: spec_pb2.FinetuneSpec, token: str) -> trainer.EstimateResourcesResponse:
        """Raises InvalidArgument when there is no model or no data to estimate for."""
        checked = self._checks.check(spec_pb2.TaskSpec(finetune=spec), token=token)
        problems = [Problem(f"spec.{item.field.removeprefix('finetune.')}", item.message) for item in checked.problems]
        estimate = estimate_checked(self._estimator, spec, checked)
        if estimate is None:
            unknown = Problem("spec.base_model", "its size is not known before the task that makes it has ended")
            raise InvalidArgument(problems=problems or [unknown], reason="NOTHING_TO_ESTIMATE")
        return answer(estimate, [str(problem) for problem in problems])

    def _model(self, name: str) -> Path:
        try:
            return self._models.resolve(name).directory
        except ModelkitError as error:
            raise InvalidArgument(problems=[Problem(item.field, item.message) for item in error.problems]) from error

    def _read(
        self,
        source: spec_pb2.DatasetSource,
        token: str,
        read: Callable[[DatasetFiles], T],
        reading: Reading | None = None,
    ) -> T:
        """Result of read. Raises InvalidArgument when there is no dataset that it could read."""
        try:
            return read(self._checks.dataset(source, reading=reading, token=token))
        except ModelkitError as error:
            problems = [Problem(problem.field, problem.message) for problem in error.problems]
            raise InvalidArgument(problems=problems, reason=error.reason) from error
        except OSError as error:
            raise InvalidArgument(problems=[Problem("dataset.path", f"cannot be read: {error}")]) from error


def _device(device: devices.Device) -> trainer.Device:
    return trainer.Device(
        id=device.id,
        name=device.name,
        type=device.type,
        memory_total=device.memory_total,
        memory_free=device.memory_free,
        cores=device.cores,
    )
