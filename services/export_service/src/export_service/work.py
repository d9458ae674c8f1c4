"""One attempt at an export: fetches what is exported, has a child make it, stores the result."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from export_service.checks import CheckedExport, ExportChecks
from export_service.job import Job
from export_service.names import format_word
from export_service.rows import Messages, NoRows, TrainingRows
from export_service.sources import TASK_PREFIX, has_adapter, is_model_file, needs_base, wants_base_alone
from modelkit.base_models import ResolvedModel, describe
from modelkit.errors import ModelkitError
from modelkit.inspection import inspect
from servicekit.objects import ObjectStore
from tunesmith.task.v1 import spec_pb2, task_service_pb2
from workerkit import child_events as events
from workerkit.artifacts import ArtifactDamaged, Origin, fetch
from workerkit.crashes import Terms
from workerkit.endings import AttemptError, Ending, Failed
from workerkit.intent import Control, Intent
from workerkit.launcher import Launcher
from workerkit.lease import Lease
from workerkit.reporter import Reporter
from workerkit.running import ChildRun, brought_to_an_end, patience_for
from workerkit.storing import ResultStore, patiently
from workerkit.supervision import Patience

T = TypeVar("T")

MEMORY_ADVICE = ("export on a machine with more memory", "choose types without an importance matrix")
TERMS = Terms("export process", MEMORY_ADVICE)


@dataclass(frozen=True, slots=True)
class Workshop:
    """What every attempt of a worker uses."""

    store: ObjectStore
    launcher: Launcher
    checks: ExportChecks
    rows: TrainingRows
    output_root: Path
    patience: Patience


class ExportWork:
    """Brings a claimed export to its end. Cancel `run` to leave everything at once: the child dies with it."""

    def __init__(
        self,
        shop: Workshop,
        claim: task_service_pb2.ClaimTaskResponse,
        folder: Path,
        control: Control,
        lease: Lease,
        reporter: Reporter,
    ) -> None:
        self._shop = shop
        self._source = claim.source
        self._task = claim.task
        self._spec = claim.task.spec.export
        self._folder = folder
        self._control = control
        self._reporter = reporter
        reporter.anew()
        base_name = claim.source.spec.finetune.base_model
        origin = Origin(self._task.id, self._task.attempt, self._task.run, base_name)
        patience = patience_for(self._task.labels, shop.patience, saves=False)
        self._child = ChildRun(shop.launcher, control, lease, reporter, patience, TERMS)
        self._result = ResultStore(shop.store, origin, control, lease, reporter, "the export")
        self._output_dir = shop.output_root / self._task.id
        self._held = contextlib.ExitStack()  # a converted base model may not leave its cache

    async def run(self) -> Ending:
        """How the attempt ended. Raises what nobody expects to go wrong."""
        with self._held:
            return await brought_to_an_end(self._control, self._attempt())

    async def _attempt(self) -> Ending:
        job = await self._control.unless(Intent.RELEASE, self._prepare())
        environment = {"TUNESMITH_TASK_ID": self._task.id, "CUDA_VISIBLE_DEVICES": ""}
        result = await self._child.run(job.folder, environment)
        if not isinstance(result.verdict, events.Done):
            return self._child.ending(result)
        output = self._child.output(result.verdict, job.output_dir)
        self._reporter.phase("storing the export")
        kept = await self._result.keep(output, self._output_dir, step=result.verdict.step)
        self._reporter.progress.step = self._reporter.progress.total_steps
        return kept

    async def _prepare(self) -> Job:
        """Everything that the child needs, on this machine and verified. AttemptError."""
        self._reporter.phase("checking")
        self._folder.mkdir(parents=True, exist_ok=True)
        checked = await self._check()
        self._output_dir = checked.output_dir or self._output_dir
        job = Job(
            folder=self._folder,
            format=format_word(self._spec.format),
            task_id=self._task.id,
            source_task_id=self._source.task_id,
            step=self._spec.checkpoint_step,
            model_dir=await self._fetch_model(checked),
            base=await self._fetch_base(checked),
            is_adapter=has_adapter(self._source),
            base_name=self._source.spec.finetune.base_model,
            quantizations=tuple(checked.types),
            modelfile=self._spec.modelfile if self._spec.HasField("modelfile") else True,
            rows=tuple(await self._read_rows()),
        )
        await asyncio.to_thread(job.write)
        return job

    async def _check(self) -> CheckedExport:
        checked = await self._patiently(
            "the check", lambda: self._shop.checks.check(self._spec, self._source, task_id=self._task.id)
        )
        if not checked.problems and checked.stored is None and not wants_base_alone(self._spec):
            raise AttemptError(Failed("SOURCE_GONE", f"task {self._source.task_id} has no stored model to export"))
        if checked.problems:
            problems = [str(problem) for problem in checked.problems]
            raise AttemptError(Failed("SPEC_INVALID", "; ".join(problems), problems))
        return checked

    async def _fetch_model(self, checked: CheckedExport) -> Path | None:
        """The checkpoint or final model without what only training needs."""
        if checked.stored is None:
            return None
        stored, folder = checked.stored, self._folder / "model"
        self._reporter.phase("fetching the model")
        sha256 = stored.manifest_sha256
        try:
            await self._patiently(
                "the model",
                lambda: fetch(self._shop.store, stored.prefix, folder, manifest_sha256=sha256, wanted=is_model_file),
            )
        except ArtifactDamaged as error:
            raise AttemptError(Failed("CHECKPOINT_DAMAGED", f"the stored model cannot be used: {error}")) from error
        return folder

    async def _fetch_base(self, checked: CheckedExport) -> Path | None:
        """The base model in the form that it was trained in; the output of another task is fetched."""
        if not needs_base(self._spec, self._source):
            return None
        name = self._source.spec.finetune.base_model
        try:
            if checked.base is not None:
                return await self._keep_base(checked.base)
            self._reporter.phase("fetching the base model")
            folder, prefix = self._folder / "base-model", self._source.base_model_prefix
            await self._patiently(
                "the base model", lambda: fetch(self._shop.store, prefix, folder, wanted=is_model_file)
            )
            found = await asyncio.to_thread(inspect, folder)
            return describe(name, folder, found, field="").directory
        except (ArtifactDamaged, ModelkitError) as error:
            kind = f"output of {name}" if name.startswith(TASK_PREFIX) else name
            raise AttemptError(Failed("BASE_MODEL_INVALID", f"the base model, {kind}: {error}")) from error

    async def _keep_base(self, base: ResolvedModel) -> Path:
        """Directory of a base model, converted where it needs that; it stays until the export has ended."""
        models = self._shop.checks.models
        while True:
            directory = await asyncio.to_thread(models.ready, base)
            if models.conversions is None:
                return directory
            with contextlib.suppress(FileNotFoundError):  # what has left the cache meanwhile is made again
                self._held.enter_context(models.conversions.holding(directory))
                return directory

    async def _read_rows(self) -> list[Messages]:
        """Rows to compare on, and for importance matrices; none is told in the log."""
        if self._spec.format == spec_pb2.EXPORT_FORMAT_ADAPTER:
            return []
        try:
            return await self._shop.rows.read(self._spec, self._source)
        except NoRows as error:
            self._reporter.log([f"{error}; the export is compared on general texts"])
            return []

    async def _patiently(self, what: str, work: Callable[[], Awaitable[T]]) -> T:
        return await patiently(what, work, self._reporter)
