"""One attempt at a fine-tuning task: checks, resumes, trains, stores; all that a recipe need not know."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from modelkit.base_models import describe
from modelkit.checkpoints import MANIFEST
from modelkit.errors import ModelkitError
from modelkit.inspection import inspect
from servicekit.errors import TunesmithError, Unimplemented
from servicekit.objects import ObjectStore
from trainer_service.checks import CheckedSpec, SpecChecks, base_task
from trainer_service.devices import DevicePool
from trainer_service.estimates.checked import estimate_checked
from trainer_service.estimates.estimator import Estimate, Estimator
from trainer_service.launcher import Launcher, LaunchError
from trainer_service.worker import child_events as events
from trainer_service.worker import crashes
from trainer_service.worker.allowance import Allowance
from trainer_service.worker.artifacts import ArtifactDamaged, Origin, Upload, fetch
from trainer_service.worker.checkpoints import TRANSIENT, CheckpointStore
from trainer_service.worker.endings import AttemptError, Completed, Ending, Failed, Released, Stopped
from trainer_service.worker.intent import Control, Intent, Interrupted
from trainer_service.worker.job import Job
from trainer_service.worker.lease import Lease
from trainer_service.worker.output import place
from trainer_service.worker.prediction import predict, record_pace, require_room
from trainer_service.worker.quota import QuotaGate
from trainer_service.worker.reporter import Reporter
from trainer_service.worker.resume import adopt_checkpoint, fetch_checkpoint
from trainer_service.worker.supervision import ChildResult, Patience, Supervision
from tunesmith.events.v1 import fact_pb2 as facts
from tunesmith.task.v1 import task_service_pb2 as task_service

T = TypeVar("T")

RETRY_SECONDS = 0.5
RETRY_CEILING_SECONDS = 30.0
GRACE_LABEL = "stop_grace_seconds"
LONGEST_GRACE_SECONDS = 3600.0


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
        allowance: Allowance,
    ) -> None:
        self._shop = shop
        self._claim = claim
        self._task = claim.task
        self._spec = claim.task.spec.finetune
        self._folder = folder
        self._control = control
        self._lease = lease
        self._reporter = reporter
        self._quota = QuotaGate(allowance, control, reporter)
        self._origin = Origin(self._task.id, self._task.attempt, self._task.run, self._spec.base_model)
        self._output_dir = shop.output_root / self._task.id
        self._estimate: Estimate | None = None

    async def run(self) -> Ending:
        """How the attempt ended. Raises what nobody expects to go wrong."""
        self._quota.begin(self._task.attempt, self._spec.training)
        with self._shop.devices.reserved(self._spec.devices.cuda_visible_devices) as devices:
            try:
                job = await self._control.unless(Intent.RELEASE, self._prepare(devices))
                async with self._uploading() as checkpoints:
                    result = await self._train(job, checkpoints)
                    if isinstance(result.verdict, events.Done):
                        return await self._finish(result.verdict, job, checkpoints)
                    return await self._explain(result, checkpoints)
            except Interrupted as interruption:
                if interruption.intent is Intent.ABANDON:
                    raise
                return Stopped(why=self._control.stop_reason) if self._control.stop_wanted else Released()
            except AttemptError as error:
                return error.failed
            except OSError as error:
                return Failed("DISK_FAILED", f"the worker cannot use its disk: {error}", retryable=True)

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
        if task_id := base_task(self._spec.base_model):
            checked.model_dir = await self._fetch_base(task_id)
        return checked

    async def _check_here(self) -> CheckedSpec:
        try:
            return await asyncio.to_thread(self._shop.checks.check, self._task.spec, task_id=self._task.id)
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
        self._reporter.phase("starting")
        kills = crashes.out_of_memory_kills()
        try:
            starting = self._shop.launcher.start(job.folder, job.environment(self._task.id))
            child = await self._control.unless(Intent.RELEASE, starting)
        except LaunchError as error:
            raise AttemptError(Failed("LAUNCH_FAILED", str(error), retryable=True)) from error
        self._lease.pid = child.pid
        self._lease.nudge()
        started = facts.ChildStarted(pid=child.pid, resumed_step=job.resume_step)
        self._reporter.fact(facts.Fact(child_started=started))
        try:
            take = self._taker(checkpoints)
            result = await Supervision(child, self._reporter, self._control, self._patience(), take).run()
        finally:
            self._lease.pid = 0
        if self._estimate is not None:
            await asyncio.to_thread(record_pace, self._shop.estimator, self._estimate, self._reporter.steps_per_second)
        return replace(result, out_of_memory=crashes.out_of_memory_kills() > kills)

    def _taker(self, checkpoints: CheckpointStore) -> Callable[[events.CheckpointWritten], None]:
        def take(event: events.CheckpointWritten) -> None:
            if event.path.resolve().is_relative_to(self._folder.resolve()):
                checkpoints.add(event)
            else:
                self._reporter.log([f"a checkpoint outside the job's directory is ignored: {event.path}"])

        return take

    def _patience(self) -> Patience:
        """A task may be stopped with a grace period of its own, by a label."""
        with contextlib.suppress(ValueError):
            seconds = float(self._task.labels[GRACE_LABEL]) if GRACE_LABEL in self._task.labels else -1.0
            if 0 <= seconds <= LONGEST_GRACE_SECONDS:
                return replace(self._shop.patience, grace_seconds=seconds)
        return self._shop.patience

    # After the child.

    async def _explain(self, result: ChildResult, checkpoints: CheckpointStore) -> Ending:
        """The end of an attempt whose child did not finish the training."""
        ends_in_order = Intent.RELEASE <= self._control.intent < Intent.DISCARD
        last = {checkpoints.keep_held_back()} if ends_in_order else set()
        with contextlib.suppress(Interrupted):
            await self._control.unless(Intent.DISCARD, checkpoints.drained())
        failure = self._failure(result)
        if self._control.stop_wanted:
            if failure is not None and self._control.intent < Intent.DISCARD:
                self._reporter.log([f"while stopping: {failure}"])
            last |= {result.verdict.step} if isinstance(result.verdict, events.Stopped) else set()
            kept = checkpoints.newest_stored if checkpoints.newest_stored in last else 0
            return Stopped(kept, self._control.stop_reason)
        if self._control.intent >= Intent.RELEASE and (failure is None or failure.retryable):
            return Released()
        return failure or Failed(
            "CHILD_STOPPED", "the training process was told to stop by somebody else than its worker", retryable=True
        )

    def _failure(self, result: ChildResult) -> Failed | None:
        """Why the child ended without a result; None when it ended in order because it was asked to."""
        verdict = result.verdict
        if isinstance(verdict, events.Failed):
            return Failed(verdict.reason, verdict.message, verdict.problems, verdict.retryable)
        if result.stalled:
            return crashes.explain_stall(self._shop.patience.stall_seconds, result.tail)
        if verdict is None:
            return crashes.explain_crash(result.ended, result.tail, out_of_memory=result.out_of_memory)
        return None

    async def _finish(self, done: events.Done, job: Job, checkpoints: CheckpointStore) -> Ending:
        """Stores the finished model; nothing of it shows under its final name before it is whole."""
        if done.path.resolve() != job.output_dir.resolve() or not job.output_dir.is_dir():
            raise AttemptError(Failed("NO_OUTPUT", f"the training process left no model in {job.output_dir}"))
        self._reporter.phase("storing the model")
        await self._control.unless(Intent.DISCARD, checkpoints.drained())
        upload = Upload(
            self._shop.store, self._origin, "output", job.output_dir, step=done.step, ensure=self._lease.ensure
        )
        stored = await self._control.unless(Intent.DISCARD, self._patiently("the model", upload.run))
        placed = await self._control.unless(Intent.DISCARD, self._place(job, stored.manifest))
        self._reporter.progress.percent = 100.0
        self._reporter.progress.eta_seconds = 0.0
        self._reporter.phase("done")
        return Completed(stored.prefix, str(placed), stored.manifest_sha256)

    async def _place(self, job: Job, manifest: bytes) -> Path:
        try:
            (job.output_dir / MANIFEST).write_bytes(manifest)
            placed = await place(
                job.output_dir,
                self._output_dir,
                task_id=self._task.id,
                attempt=self._task.attempt,
                ensure=self._lease.ensure,
            )
        except OSError as error:
            message = f"the model could not be written to {self._output_dir}: {error}; it is kept in the object store"
            raise AttemptError(Failed("OUTPUT_NOT_WRITTEN", message, retryable=True)) from error
        if placed != self._output_dir:
            self._reporter.log([f"{self._output_dir} holds other files by now, so the model is in {placed}"])
        return placed

    async def _patiently(self, what: str, work: Callable[[], Awaitable[T]]) -> T:
        """Repeats work for as long as the object store cannot be reached. AttemptError for any other trouble."""
        delay = RETRY_SECONDS
        while True:
            try:
                return await work()
            except TRANSIENT as error:
                self._reporter.log([f"{what}: the object store does not answer, trying again: {error.message}"])
            except (TunesmithError, OSError) as error:
                raise AttemptError(Failed("STORAGE_FAILED", f"{what}: {error}", retryable=True)) from error
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(2 * delay, RETRY_CEILING_SECONDS)


def _reason(checked: CheckedSpec) -> str:
    """One word for what is wrong with a specification."""
    fields = {problem.field.split(".")[1] for problem in checked.problems}
    words = {"dataset": "DATASET_INVALID", "base_model": "BASE_MODEL_INVALID"}
    return words.get(fields.pop(), "SPEC_INVALID") if len(fields) == 1 else "SPEC_INVALID"
