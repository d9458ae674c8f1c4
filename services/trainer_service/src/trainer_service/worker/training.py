"""One attempt at a fine-tuning task: checks, resumes, trains, stores; all that a recipe need not know."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from modelkit.base_models import describe
from modelkit.errors import ModelkitError
from modelkit.inspection import inspect
from parameterkit.values import checkpoint_task
from servicekit.errors import Unimplemented
from servicekit.objects import ObjectStore
from trainer_service.checks import CheckedSpec, SpecChecks, base_task
from trainer_service.devices import DevicePool
from trainer_service.estimates.checked import estimate_checked
from trainer_service.estimates.estimator import Estimate, Estimator
from trainer_service.recipes.remedies import OUT_OF_MEMORY
from trainer_service.worker.allowance import Allowance
from trainer_service.worker.checkpoints import CheckpointStore
from trainer_service.worker.job import Job
from trainer_service.worker.prediction import predict, record_pace, require_room
from trainer_service.worker.quota import QuotaGate
from trainer_service.worker.resume import adopt_checkpoint, fetch_checkpoint
from tunesmith.task.v1 import task_service_pb2 as task_service
from workerkit import child_events as events
from workerkit.artifacts import ArtifactDamaged, Origin, fetch
from workerkit.crashes import Terms
from workerkit.endings import AttemptError, Ending, Failed
from workerkit.intent import Control, Intent, Interrupted
from workerkit.launcher import Launcher
from workerkit.lease import Lease
from workerkit.reporter import Reporter
from workerkit.running import ChildRun, brought_to_an_end, patience_for
from workerkit.storing import ResultStore, patiently
from workerkit.supervision import ChildResult, Patience

T = TypeVar("T")

TERMS = Terms("training process", OUT_OF_MEMORY)


@dataclass(frozen=True, slots=True)
class Workshop:
    """What every attempt of a worker uses."""

    store: ObjectStore
    launcher: Launcher
    checks: SpecChecks
    estimator: Estimator
    devices: DevicePool
    output_root: Path
    patience: Patience


class Training:
    """Brings a claimed task to its end. Cancel `run` to leave everything at once: the child dies with it."""

    def __init__(
        self,
        shop: Workshop,
        claim: task_service.ClaimTaskResponse,
        folder: Path,
        control: Control,
        lease: Lease,
        reporter: Reporter,
    ) -> None:
        self._shop = shop
        self._claim = claim
        self._task = claim.task
        self._spec = claim.task.spec.finetune
        self._folder = folder
        self._control = control
        self._lease = lease
        self._reporter = reporter
        allowance = Allowance(claim.allowance if claim.HasField("allowance") else None)
        lease.heard = allowance.heard
        self._quota = QuotaGate(allowance, control, reporter)
        self._origin = Origin(self._task.id, self._task.attempt, self._task.run, self._spec.base_model)
        patience = patience_for(self._task.labels, shop.patience)
        self._child = ChildRun(shop.launcher, control, lease, reporter, patience, TERMS)
        self._result = ResultStore(shop.store, self._origin, control, lease, reporter, "the model")
        self._output_dir = shop.output_root / self._task.id
        self._estimate: Estimate | None = None
        self._held = contextlib.ExitStack()  # what a training reads may not leave the caches

    async def run(self) -> Ending:
        """How the attempt ended. Raises what nobody expects to go wrong."""
        self._quota.begin(self._task.attempt, self._spec.training)
        reserved = self._shop.devices.reserved(self._spec.devices.cuda_visible_devices)
        with self._held, reserved as devices:
            return await brought_to_an_end(self._control, self._attempt(devices))

    async def _attempt(self, devices: str) -> Ending:
        job = await self._control.unless(Intent.RELEASE, self._prepare(devices))
        async with self._uploading() as checkpoints:
            result = await self._train(job, checkpoints)
            if isinstance(result.verdict, events.Done):
                return await self._finish(result.verdict, job, checkpoints)
            return await self._explain(result, checkpoints)

    # Before the child.

    async def _prepare(self, devices: str) -> Job:
        self._reporter.phase("checking model and data")
        self._folder.mkdir(parents=True, exist_ok=True)
        checked = await self._check()
        if checked.dataset is None or checked.model_dir is None:
            raise AssertionError("a specification without problems has a model and data")
        self._output_dir = checked.output_dir or self._output_dir
        self._estimate = await self._predict(checked, devices)
        job = Job(
            folder=self._folder,
            spec=self._spec,
            model_dir=checked.model_dir,
            train_file=checked.dataset.train,
            validation_file=checked.dataset.validation,
            test_file=checked.dataset.test,
            tokenizer_dir=checked.tokenizer_dir,
            cache=self._shop.checks.cache,
            cuda_visible_devices=devices,
            predicted_memory_bytes=self._estimate.memory.total if self._estimate else 0,
        )
        if self._claim.resume_from:
            self._reporter.phase("fetching checkpoint")
            resumption = await self._patiently(
                "the checkpoint",
                lambda: fetch_checkpoint(
                    self._shop.store,
                    self._claim.resume_from,
                    self._folder / "resume",
                    self._reporter,
                    exact=self._claim.resume_exact,
                ),
            )
            if resumption is not None:
                job = replace(job, resume_from=resumption.folder, resume_step=resumption.step)
        elif checkpoint_task(self._spec.resume_from_checkpoint):
            message = f"finetune.resume_from_checkpoint: {self._spec.resume_from_checkpoint} is not stored any more"
            raise AttemptError(Failed("CHECKPOINT_MISSING", message))
        elif checked.resume_from:
            resumption = await adopt_checkpoint(checked.resume_from, self._reporter)
            job = replace(job, resume_from=resumption.folder, resume_step=resumption.step)
        await asyncio.to_thread(job.write)
        return job

    async def _predict(self, checked: CheckedSpec, devices: str) -> Estimate | None:
        """The estimate, told and recorded; None when there is none. AttemptError when the disk cannot take a result."""
        estimate = await asyncio.to_thread(estimate_checked, self._shop.estimator, self._spec, checked, devices=devices)
        if estimate is not None:
            require_room(estimate)
            predict(estimate, self._reporter, self._task.progress.step)
        return estimate

    async def _check(self) -> CheckedSpec:
        checked = await self._patiently("the dataset", self._check_here)
        if checked.problems:
            problems = [str(problem) for problem in checked.problems]
            raise AttemptError(Failed(_reason(checked), "; ".join(problems), problems))
        self._reporter.log(f"warning: {warning}; it has no effect" for warning in checked.warnings)
        if task_id := base_task(self._spec.base_model):
            checked.model_dir = await self._fetch_base(task_id)
        return checked

    async def _check_here(self) -> CheckedSpec:
        checks = self._shop.checks
        try:
            while True:
                checked = await asyncio.to_thread(checks.check, self._task.spec, task_id=self._task.id)
                with contextlib.suppress(FileNotFoundError):  # what has left a cache meanwhile is made again
                    self._held.enter_context(checks.holding(checked))
                    return checked
        except Unimplemented as error:
            raise AttemptError(Failed(error.reason, error.message)) from error

    async def _fetch_base(self, task_id: str) -> Path:
        """The output of another task, verified and fit to be a base model."""
        prefix = self._claim.dependency_outputs.get(task_id, "")
        name = "finetune.base_model"
        if not prefix:
            message = f"{name}: task {task_id} has no stored output, or is not among those this task depends on"
            raise AttemptError(Failed("BASE_MODEL_INVALID", message))
        self._reporter.phase("fetching base model")
        folder = self._folder / "base-model"
        try:
            await self._patiently("the base model", lambda: fetch(self._shop.store, prefix, folder))
            found = await asyncio.to_thread(inspect, folder)
            return describe(self._spec.base_model, folder, found, field=name).directory
        except ArtifactDamaged as error:
            raise AttemptError(Failed("BASE_MODEL_INVALID", f"{name}: output of task {task_id}: {error}")) from error
        except ModelkitError as error:
            message = f"{name}: output of task {task_id}: {error}"
            raise AttemptError(Failed("BASE_MODEL_INVALID", message)) from error

    # The child.

    @contextlib.asynccontextmanager
    async def _uploading(self) -> AsyncIterator[CheckpointStore]:
        checkpoints = CheckpointStore(
            self._shop.store,
            self._reporter,
            self._origin,
            limit=self._spec.training.save_total_limit,
            ensure=self._lease.ensure,
            quota=self._quota,
        )
        uploads = asyncio.create_task(checkpoints.run())
        try:
            yield checkpoints
        finally:
            uploads.cancel()
            await asyncio.gather(uploads, return_exceptions=True)

    async def _train(self, job: Job, checkpoints: CheckpointStore) -> ChildResult:
        take = self._taker(checkpoints)
        environment = job.environment(self._task.id)
        result = await self._child.run(job.folder, environment, take, resumed_step=job.resume_step)
        if self._estimate is not None:
            await asyncio.to_thread(record_pace, self._shop.estimator, self._estimate, self._reporter.steps_per_second)
        return result

    def _taker(self, checkpoints: CheckpointStore) -> Callable[[events.CheckpointWritten], None]:
        def take(event: events.CheckpointWritten) -> None:
            if event.path.resolve().is_relative_to(self._folder.resolve()):
                checkpoints.add(event)
            else:
                self._reporter.log([f"a checkpoint outside the job's directory is ignored: {event.path}"])

        return take

    # After the child.

    async def _explain(self, result: ChildResult, checkpoints: CheckpointStore) -> Ending:
        """The end of an attempt whose child did not finish the training."""
        ends_in_order = Intent.RELEASE <= self._control.intent < Intent.DISCARD
        last = {checkpoints.keep_held_back()} if ends_in_order else set()
        with contextlib.suppress(Interrupted):
            await self._control.unless(Intent.DISCARD, checkpoints.drained())
        last |= {result.verdict.step} if isinstance(result.verdict, events.Stopped) else set()
        return self._child.ending(result, checkpoints.newest_stored if checkpoints.newest_stored in last else 0)

    async def _finish(self, done: events.Done, job: Job, checkpoints: CheckpointStore) -> Ending:
        """Stores the finished model."""
        output = self._child.output(done, job.output_dir)
        self._reporter.phase("storing the model")
        await self._control.unless(Intent.DISCARD, checkpoints.drained())
        return await self._result.keep(output, self._output_dir, step=done.step)

    async def _patiently(self, what: str, work: Callable[[], Awaitable[T]]) -> T:
        return await patiently(what, work, self._reporter)


def _reason(checked: CheckedSpec) -> str:
    """One word for what is wrong with a specification."""
    fields = {problem.field.split(".")[1] for problem in checked.problems}
    words = {"dataset": "DATASET_INVALID", "base_model": "BASE_MODEL_INVALID"}
    return words.get(fields.pop(), "SPEC_INVALID") if len(fields) == 1 else "SPEC_INVALID"
