"""Checks a whole specification: at submit, and again before training."""

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

from google.protobuf.json_format import MessageToDict

from modelkit.base_models import BaseModels
from modelkit.datasets import DataCache, DatasetFiles, Reading, splitting
from modelkit.errors import ModelkitError
from modelkit.identity import BASE_NAME, BASE_SHA256, recorded_origin, weights_sha256
from modelkit.paths import AllowedRoots
from parameterkit.continuation import refusals
from parameterkit.values import checkpoint_task
from servicekit.errors import Problem, Unimplemented
from trainer_service.devices import gpus
from trainer_service.recipes.checkpoint_files import missing_from
from trainer_service.recipes.config import Finetune
from trainer_service.recipes.identity import other_base, parameters_of
from trainer_service.recipes.support import unfit, unsupported, without_effect
from tunesmith.task.v1 import spec_pb2
from workerkit.child.errors import InvalidJob
from workerkit.datasets import DatasetChecks, as_what_it_is, first_reading_of, reading_of
from workerkit.holding import holding
from workerkit.output import may_be_written

TASK_PREFIX = "task:"
MORE_TEMPLATES = "additional_chat_templates"  # where transformers looks for more of a tokenizer's templates


@dataclass(slots=True)
class CheckedSpec:
    """What a specification stands for on this machine; everything is set that has no problem.

    weights is the directory whose weights are trained; unknown while a model waits for its conversion. warnings are of
    a task that was accepted before, for its log: they do not keep it from training.
    """

    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    model_dir: Path | None = None
    weights: Path | None = None
    tokenizer_dir: Path | None = None
    dataset: DatasetFiles | None = None
    rows: int = 0
    output_dir: Path | None = None
    resume_from: Path | None = None

    def refuse(self, path: str, message: str) -> None:
        """Notes a problem of a field."""
        self.problems.append(Problem(path, message))

    def take(self, error: ModelkitError) -> None:
        """Notes every problem of an error."""
        self.problems += [Problem(problem.field, problem.message) for problem in error.problems]


def base_task(base_model: str) -> str:
    """Id of the task whose output is the base model, empty for any other base model."""
    return base_model.removeprefix(TASK_PREFIX) if base_model.startswith(TASK_PREFIX) else ""


def require_available(spec: spec_pb2.TaskSpec) -> None:
    """Raises Unimplemented for work that this version cannot do."""
    kind = spec.WhichOneof("work") or "nothing"
    if kind != "finetune":
        raise Unimplemented(f"a trainer does not do tasks of kind {kind}", reason="KIND_NOT_AVAILABLE")
    modality = spec.finetune.WhichOneof("modality") or "nothing"
    if modality != "language_model":
        words = modality.replace("_", " ")
        raise Unimplemented(f"training of {words} is not available yet", reason="MODALITY_NOT_AVAILABLE")


class SpecChecks:
    """Checks specifications against this machine. Blocks while it reads; call it in a thread."""

    def __init__(
        self, roots: AllowedRoots, models: BaseModels, known_datasets: DatasetChecks, *, cpu_fallback: bool = False
    ) -> None:
        self.roots = roots
        self.models = models
        self._datasets = known_datasets
        self._cpu_fallback = cpu_fallback

    def check(self, spec: spec_pb2.TaskSpec, *, task_id: str = "", token: str = "") -> CheckedSpec:
        """Everything that is wrong, all at once. Raises Unimplemented for work that this version cannot do.

        task_id is the task that trains, whose own former output may be replaced. token is that of a user who asks and
        may know of his own uploads alone; without it the service reads a dataset by its own right.
        """
        require_available(spec)
        finetune = spec.finetune
        checked = CheckedSpec()
        _check_parameters(finetune, checked, trains=bool(task_id))
        self._check_model(finetune, checked, trains=bool(task_id))
        self._check_tokenizer(finetune, checked)
        self._check_dataset(finetune, checked, token)
        self._check_output(finetune, checked, task_id)
        self._check_resume(finetune, checked)
        _check_devices(finetune.devices, checked, cpu_fallback=self._cpu_fallback)
        return checked

    @property
    def cache(self) -> DataCache:
        """What was worked out from data."""
        return self._datasets.cache

    def holding(self, checked: CheckedSpec) -> AbstractContextManager[None]:
        """As workerkit.holding."""
        return holding(checked, self.cache, self.models)

    def dataset(
        self,
        source: spec_pb2.DatasetSource,
        *,
        path: str = "dataset",
        reading: Reading | None = None,
        token: str = "",
    ) -> DatasetFiles:
        """The files of a dataset, read with the token of the user who asks. Raises ModelkitError, TunesmithError.

        Without a reading, its rows are read as what they can be used for.
        """
        found = self._datasets.find(source, self.roots, reading or first_reading_of(source), where=path, token=token)
        return found if reading else as_what_it_is(found)

    def _check_model(self, finetune: spec_pb2.FinetuneSpec, checked: CheckedSpec, *, trains: bool) -> None:
        """Only the one who trains waits until a model is converted that needs it."""
        name = "finetune.base_model"
        if finetune.base_model.startswith(TASK_PREFIX):
            if not base_task(finetune.base_model):
                checked.refuse(name, "write task:<id> with the id of a task that this one depends on")
            return
        try:
            own_tokenizer = not finetune.language_model.tokenizer_path
            model = self.models.resolve(finetune.base_model, field=name, own_tokenizer=own_tokenizer)
            checked.model_dir = self.models.ready(model) if trains else model.directory
            checked.weights = checked.model_dir if trains or not model.needs_conversion else None
        except ModelkitError as error:
            checked.take(error)
            return
        with contextlib.suppress(InvalidJob):  # told by _check_parameters
            checked.problems += unfit(finetune, model.config, model.layers)

    def _check_dataset(self, finetune: spec_pb2.FinetuneSpec, checked: CheckedSpec, token: str) -> None:
        source, parameters = finetune.dataset, finetune.language_model
        name = f"finetune.dataset.{source.WhichOneof('source') or 'path'}"
        reading = replace(reading_of(source, parameters.objective), labels=tuple(parameters.labels))
        try:
            files = self.dataset(source, path="finetune.dataset", reading=reading, token=token)
            report = self._datasets.check(files)
        except ModelkitError as error:
            checked.take(error)
            return
        except OSError as error:
            checked.refuse(name, f"cannot be read: {error}")
            return
        for problem in report.problems:
            checked.refuse(name, str(problem))
        rows = min(report.rows, parameters.max_samples or report.rows)
        checked.dataset, checked.rows = files, rows
        try:
            splitting.sizes(
                rows, 0.0 if files.validation else parameters.eval_ratio, 0.0 if files.test else parameters.test_ratio
            )
        except ModelkitError as error:
            if not report.problems:
                checked.refuse(name, error.problems[0].message)
        if _needs_evaluations(finetune.training) and files.validation is None and not parameters.eval_ratio:
            message = "there is nothing to evaluate on: give validation data, or an eval_ratio above 0"
            checked.refuse("finetune.training.eval_strategy", message)

    def _check_tokenizer(self, finetune: spec_pb2.FinetuneSpec, checked: CheckedSpec) -> None:
        name = "finetune.language_model.tokenizer_path"
        if not (path := finetune.language_model.tokenizer_path):
            return
        try:
            checked.tokenizer_dir = self.roots.resolve(path, field=name)
        except ModelkitError as error:
            checked.take(error)
            return
        if not (checked.tokenizer_dir / "tokenizer.json").is_file():
            checked.refuse(name, f"{checked.tokenizer_dir} has no tokenizer.json; give the directory of a tokenizer")
        elif leading_out := self._leading_out(checked.tokenizer_dir):
            checked.refuse(name, leading_out)

    def _check_output(self, finetune: spec_pb2.FinetuneSpec, checked: CheckedSpec, task_id: str) -> None:
        if not finetune.output_dir:
            return
        name = "finetune.output_dir"
        try:
            target = self.roots.target(finetune.output_dir, field=name)
        except ModelkitError as error:
            checked.take(error)
            return
        if not may_be_written(target, task_id):
            checked.refuse(name, f"{target} is not empty; choose another directory, or empty it")
        checked.output_dir = target

    def _check_resume(self, finetune: spec_pb2.FinetuneSpec, checked: CheckedSpec) -> None:
        """The training itself compares all that a checkpoint was made from; what it would refuse is told here.

        One in the store comes with the claim of the task, which the task service gives to the owner alone.
        """
        if not finetune.resume_from_checkpoint or checkpoint_task(finetune.resume_from_checkpoint):
            return
        name = "finetune.resume_from_checkpoint"
        try:
            checkpoint = self.roots.resolve(finetune.resume_from_checkpoint, field=name)
        except ModelkitError as error:
            checked.take(error)
            return
        if missing := missing_from(checkpoint):
            checked.refuse(name, f"{checkpoint} is no checkpoint to go on from: it has no {', no '.join(missing)}")
        elif leading_out := self._leading_out(checkpoint):
            checked.refuse(name, leading_out)
        else:
            for difference in _differences(finetune, checkpoint, checked.weights):
                checked.refuse(name, f"{checkpoint} is of another training: {difference}")
        checked.resume_from = checkpoint

    def _leading_out(self, folder: Path) -> str:
        """What is wrong with a directory whose files are links to what the user may not name; empty without such."""
        read = [*folder.iterdir(), *folder.glob(f"{MORE_TEMPLATES}/*")]
        outside = sorted(path.name for path in read if not self.roots.contains(path))
        return f"{', '.join(outside)}: links that lead out of the allowed directories" if outside else ""


def _differences(finetune: spec_pb2.FinetuneSpec, checkpoint: Path, weights: Path | None) -> Iterator[str]:
    """What a checkpoint was made from that must not differ and does, as far as it says so."""
    origin = recorded_origin(checkpoint)
    before = origin.get("parameters")
    with contextlib.suppress(InvalidJob, OSError):  # told elsewhere
        if weights and origin and origin[BASE_SHA256] != weights_sha256(weights):
            yield other_base(str(origin.get(BASE_NAME)), finetune.base_model)
        if isinstance(before, dict):
            spec = MessageToDict(finetune, preserving_proto_field_name=True)
            yield from refusals(before, parameters_of(Finetune.parse(spec)))


def _needs_evaluations(training: spec_pb2.TrainingParameters) -> bool:
    """Whether a training asks for validation rows, or would not end or slow down as it should without them."""
    if training.eval_strategy == spec_pb2.INTERVAL_STRATEGY_AUTO:
        return training.early_stopping_patience > 0 or training.lr_scheduler_type == "reduce_lr_on_plateau"
    return training.eval_strategy in (spec_pb2.INTERVAL_STRATEGY_STEPS, spec_pb2.INTERVAL_STRATEGY_EPOCH)


def _check_parameters(finetune: spec_pb2.FinetuneSpec, checked: CheckedSpec, *, trains: bool) -> None:
    """Tasks that were accepted before something without effect was refused train as they did."""
    (checked.warnings if trains else checked.problems).extend(without_effect(finetune))
    try:
        checked.problems += unsupported(finetune)
    except InvalidJob as error:
        for problem in error.problems or (error.message,):
            checked.refuse("finetune", problem)


def _check_devices(devices: spec_pb2.DeviceRequest, checked: CheckedSpec, *, cpu_fallback: bool) -> None:
    if not devices.cuda_visible_devices:
        return
    name = "finetune.devices.cuda_visible_devices"
    wanted = devices.cuda_visible_devices.split(",")
    present = [device.id for device in gpus()]
    missing = [device for device in wanted if device not in present]
    if missing and (present or not cpu_fallback):
        there = f"this worker has {', '.join(present)}" if present else "this worker has no CUDA device; leave it empty"
        checked.refuse(name, f"there is no device {', '.join(missing)}: {there}")
    if len(set(wanted)) < len(wanted):
        checked.refuse(name, f"{devices.cuda_visible_devices!r} names a device twice")
