"""One attempt at an evaluation: brings model, data and checkpoints here, has a child score them, stores the report."""

import asyncio
import contextlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from eval_service.candidates import StoredCandidate, candidates_of, is_needed, missing_steps
from eval_service.checks import TASK_PREFIX, CheckedEvaluation, EvaluationChecks
from eval_service.recipes.entry import OUTLOOK
from eval_service.recipes.job import SAMPLING, SUITE_STALL_SECONDS, Answering, Candidate, Choice, Job, Learnt
from modelkit.base_models import describe
from modelkit.datasets import DataCache
from modelkit.errors import ModelkitError
from modelkit.identity import recorded_origin, require_same_base
from modelkit.inspection import inspect
from servicekit.objects import ObjectStore
from tunesmith.task.v1 import spec_pb2, task_service_pb2
from workerkit import child_events as events
from workerkit.artifacts import ArtifactDamaged, Origin, fetch
from workerkit.crashes import Terms
from workerkit.datasets import columns_of
from workerkit.endings import AttemptError, Ending, Failed
from workerkit.intent import Control, Intent
from workerkit.launcher import Launcher
from workerkit.lease import Lease
from workerkit.reporter import Reporter
from workerkit.running import ChildRun, brought_to_an_end, patience_for
from workerkit.storing import ResultStore, patiently
from workerkit.supervision import Patience

TERMS = Terms("evaluation process", OUTLOOK.memory_advice)
# Of reports, in the output directory of a training.
FOLDER = "evaluations"
DATASET_SHA256 = "dataset_sha256"


@dataclass(frozen=True, slots=True)
class EvaluationShop:
    """What every attempt of a worker uses."""

    store: ObjectStore
    launcher: Launcher
    checks: EvaluationChecks
    output_root: Path
    patience: Patience
    suite_stall_seconds: float = SUITE_STALL_SECONDS


class EvaluationWork:
    """Brings a claimed evaluation to its end. Cancel `run` to leave everything at once: the child dies with it."""

    def __init__(
        self,
        shop: EvaluationShop,
        claim: task_service_pb2.ClaimTaskResponse,
        folder: Path,
        control: Control,
        lease: Lease,
        reporter: Reporter,
    ) -> None:
        self._shop, self._folder, self._control, self._reporter = shop, folder, control, reporter
        reporter.anew()
        self._task, self._source = claim.task, claim.source
        self._spec = claim.task.spec.evaluate
        self._finetune = claim.source.spec.finetune
        patience = patience_for(self._task.labels, shop.patience, saves=False)
        self._child = ChildRun(shop.launcher, control, lease, reporter, patience, TERMS)
        origin = Origin(self._task.id, self._task.attempt, self._task.run, self._finetune.base_model)
        self._result = ResultStore(shop.store, origin, control, lease, reporter, "the report")
        self._held = contextlib.ExitStack()  # what an evaluation reads may not leave the caches

    async def run(self) -> Ending:
        """How the attempt ended. Raises what nobody expects to go wrong."""
        with self._held:
            return await brought_to_an_end(self._control, self._attempt())

    async def _attempt(self) -> Ending:
        job = await self._control.unless(Intent.RELEASE, self._prepare())
        result = await self._child.run(job.work_dir, {"TUNESMITH_TASK_ID": self._task.id})
        if not isinstance(result.verdict, events.Done):
            return self._child.ending(result)
        output = self._child.output(result.verdict, job.output_dir)
        self._reporter.phase("storing the report")
        kept = await self._result.keep(output, self._target(), step=result.verdict.step)
        self._reporter.progress.step = self._reporter.progress.total_steps
        return kept

    def _target(self) -> Path:
        """In the training's own output directory, where that is here and can be written; else among all results."""
        trained = Path(self._source.output.directory)
        if self._source.output.directory and self._shop.checks.may_write(trained):
            return trained / FOLDER / self._task.id
        return self._shop.output_root / self._task.id

    async def _prepare(self) -> Job:
        self._reporter.phase("checking model and data")
        self._folder.mkdir(parents=True, exist_ok=True)
        checked = await patiently("the dataset", self._check, self._reporter)
        model_dir = checked.model_dir or await self._fetch_base()
        candidates = await self._fetch_candidates()
        await asyncio.to_thread(self._require_origin, candidates, model_dir)
        job = job_of(self._spec, self._finetune, checked, model_dir, candidates, self._folder, self._shop.checks.cache)
        titles = {
            "name": self._task.name,
            "source_task_id": self._source.task_id,
            "source_name": self._source.name,
            "base_model": self._finetune.base_model,
        }
        job = replace(job, titles=titles, suite_stall_seconds=self._shop.suite_stall_seconds)
        await asyncio.to_thread(job.write)
        return job

    async def _check(self) -> CheckedEvaluation:
        if not self._source.task_id:
            message = f"evaluate.source_task_id: task {self._spec.source_task_id} is not there any more"
            raise AttemptError(Failed("SOURCE_GONE", message))
        checks = self._shop.checks
        while True:
            checked = await asyncio.to_thread(checks.check, self._spec, self._source, starts=True)
            if checked.problems:
                problems = [str(problem) for problem in checked.problems]
                raise AttemptError(Failed("SPEC_INVALID", "; ".join(problems), problems))
            with contextlib.suppress(FileNotFoundError):  # what has left a cache meanwhile is made again
                self._held.enter_context(checks.holding(checked))
                return checked

    async def _fetch_base(self) -> Path:
        """The base model of a task that went on from another task's output."""
        name, folder = self._finetune.base_model, self._folder / "base-model"
        assert name.startswith(TASK_PREFIX)
        if not self._source.base_model_prefix:
            raise AttemptError(Failed("BASE_MODEL_INVALID", f"the output of {name} is not stored any more"))
        self._reporter.phase("fetching base model")
        try:
            prefix = self._source.base_model_prefix
            await patiently("the base model", lambda: fetch(self._shop.store, prefix, folder), self._reporter)
            found = await asyncio.to_thread(inspect, folder)
            return describe(name, folder, found, field="base_model").directory
        except (ArtifactDamaged, ModelkitError) as error:
            raise AttemptError(Failed("BASE_MODEL_INVALID", f"the output of {name}: {error}")) from error

    async def _fetch_candidates(self) -> list[Candidate]:
        """The checkpoints, each in a directory of its own, every file verified."""
        if missing := missing_steps(self._spec, self._source):
            steps = ", ".join(map(str, missing))
            message = f"evaluate.checkpoint_steps: the task has no stored checkpoint at step {steps} any more"
            raise AttemptError(Failed("CHECKPOINT_MISSING", message))
        stored = candidates_of(self._spec, self._source)
        if not stored and not self._spec.include_base_model:
            raise AttemptError(Failed("CHECKPOINT_MISSING", "the task has no stored checkpoint and no final model"))
        found = []
        for number, item in enumerate(stored, start=1):
            self._reporter.phase(f"fetching checkpoint {number} of {len(stored)}")
            found.append(Candidate(item.step, await self._fetch_candidate(item)))
        return found

    async def _fetch_candidate(self, item: StoredCandidate) -> Path:
        folder = self._folder / "checkpoints" / f"checkpoint-{item.step}"
        store, digest = self._shop.store, item.manifest_sha256
        try:
            await patiently(
                f"checkpoint {item.step}",
                lambda: fetch(store, item.prefix, folder, manifest_sha256=digest, wanted=is_needed),
                self._reporter,
            )
        except ArtifactDamaged as error:
            raise AttemptError(Failed("CHECKPOINT_DAMAGED", f"checkpoint {item.step}: {error}")) from error
        return folder

    def _require_origin(self, candidates: list[Candidate], model_dir: Path) -> None:
        """AttemptError when the base model is not the one that the checkpoints were trained on."""
        try:
            for candidate in candidates:
                if require_same_base(candidate.directory, model_dir, name=self._finetune.base_model):
                    return
        except ModelkitError as error:
            raise AttemptError(Failed("BASE_MODEL_CHANGED", str(error))) from error


def job_of(
    spec: spec_pb2.EvaluateSpec,
    finetune: spec_pb2.FinetuneSpec,
    checked: CheckedEvaluation,
    model_dir: Path,
    candidates: list[Candidate],
    folder: Path,
    cache: DataCache,
) -> Job:
    """What the child is told. The specification has no problems; what it leaves out takes the recipe's defaults."""
    files = checked.dataset
    assert files is not None
    own = spec.HasField("dataset")
    columns = columns_of(spec.dataset if own else finetune.dataset)
    digests = [recorded_origin(item.directory).get(DATASET_SHA256, "") for item in candidates[:1]]
    return Job(
        model_dir=model_dir,
        train_file=files.train,
        validation_file=files.validation,
        test_file=files.test,
        own_dataset=own,
        work_dir=folder,
        output_dir=folder / "output",
        candidates=tuple(candidates),
        include_base_model=spec.include_base_model,
        scores=tuple(spec.scores),
        weights=dict(spec.weights),
        suites=tuple(spec.suites),
        learnt=_learnt(finetune, asdict(columns)),
        choice=_choice(spec),
        answering=_answering(spec.sampling),
        embedding_dir=checked.embedding_dir,
        cache_dir=cache.root,
        cache_bytes=cache.limit_bytes,
        dataset_sha256=next(iter(digests), ""),
    )


def _learnt(finetune: spec_pb2.FinetuneSpec, columns: dict[str, str]) -> Learnt:
    parameters = finetune.language_model
    given: dict[str, Any] = {
        name: getattr(parameters, name)
        for name in ("max_seq_length", "max_samples", "eval_ratio", "test_ratio")
        if parameters.HasField(name)
    }
    if parameters.HasField("objective"):
        given["objective"] = spec_pb2.Objective.Name(parameters.objective).removeprefix("OBJECTIVE_")
    if finetune.training.HasField("seed"):
        given["seed"] = finetune.training.seed
    return Learnt(labels=tuple(parameters.labels), columns=columns, **given)


def _choice(spec: Any) -> Choice:
    names = {"sample_ratio": "ratio", "min_samples": "least", "max_samples": "most", "seed": "seed"}
    given: dict[str, Any] = {mine: getattr(spec, name) for name, mine in names.items() if spec.HasField(name)}
    if spec.split:
        given["split"] = spec_pb2.EvaluationSplit.Name(spec.split).removeprefix("EVALUATION_SPLIT_")
    return Choice(**given)


def _answering(sampling: Any) -> Answering:
    chosen = {name: getattr(sampling, name) for name in SAMPLING if sampling.HasField(name)}
    most = sampling.max_tokens if sampling.HasField("max_tokens") else Answering().max_tokens
    return Answering({**SAMPLING, **chosen}, most, tuple(sampling.stop))
