"""Checks a whole specification of an export: at submit, and again before the work begins."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from export_service import gguf
from export_service.disk import Places, amounts, free_bytes, shortages
from export_service.names import DEFAULT_TYPE
from export_service.rows import NoRows, TrainingRows
from export_service.sources import (
    ENDED,
    TASK_PREFIX,
    Stored,
    has_adapter,
    is_model_file,
    needs_base,
    stored_model,
    wants_base_alone,
)
from modelkit.base_models import BaseModels, ResolvedModel
from modelkit.checkpoints import Manifest
from modelkit.errors import ModelkitError
from modelkit.paths import AllowedRoots
from servicekit.errors import NotFound, Problem
from servicekit.objects import ObjectStore
from tunesmith.task.v1 import spec_pb2, task_service_pb2
from workerkit.artifacts import ArtifactDamaged, require_whole
from workerkit.output import may_be_written
from workerkit.turns import InThread

SOURCE, TYPES, OUTPUT = "export.source_task_id", "export.quantizations", "export.output_dir"
FORMAT, STEP, IMPORTANCE = "export.format", "export.checkpoint_step", "export.importance_dataset"
MODELFILE = "export.modelfile"
GGUF_FORMATS = (spec_pb2.EXPORT_FORMAT_GGUF, spec_pb2.EXPORT_FORMAT_GGUF_BASE)
ADAPTER_FORMATS = (spec_pb2.EXPORT_FORMAT_ADAPTER, spec_pb2.EXPORT_FORMAT_GGUF_ADAPTER)
WEIGHTS = ".safetensors"
OF_TASKS = "tasks/"
WIDTHS = {"float32": 4, "float64": 8}

Source = task_service_pb2.TaskSource


@dataclass(frozen=True, slots=True)
class Shape:
    """The model that comes out: its configuration, number of weights and their bytes."""

    config: Mapping[str, Any]
    parameters: int
    weight_bytes: int


@dataclass(slots=True)
class CheckedExport:
    """What a specification stands for on this machine; what has no problem is set.

    base is None for a base model that another task has made, which is fetched.
    """

    types: list[str]
    problems: list[Problem] = field(default_factory=list)
    stored: Stored | None = None
    manifest: Manifest | None = None
    base: ResolvedModel | None = None
    base_manifest: Manifest | None = None
    output_dir: Path | None = None

    def refuse(self, path: str, message: str) -> None:
        """Notes a problem of a field."""
        self.problems.append(Problem(path, message))


class ExportChecks:
    """Checks specifications against this machine and the object store."""

    def __init__(
        self,
        roots: AllowedRoots,
        models: BaseModels,
        store: ObjectStore,
        rows: TrainingRows,
        places: Places,
        *,
        free: Callable[[Path], int] = free_bytes,
        in_thread: InThread = asyncio.to_thread,
    ) -> None:
        self.models = models
        self._roots = roots
        self._store = store
        self._rows = rows
        self._places = places
        self._free = free
        self._in_thread = in_thread

    async def check(
        self, spec: spec_pb2.ExportSpec, source: Source, *, task_id: str = "", token: str = ""
    ) -> CheckedExport:
        """Everything that is wrong, all at once. Raises what the object store raises when it cannot be read.

        task_id is the task that exports, whose own former output may be replaced. token is that of a user who asks.
        """
        checked = CheckedExport(types=_types(spec))
        checked.problems += _form_problems(spec, source)
        if source.spec.WhichOneof("work") != "finetune" or not source.spec.finetune.HasField("language_model"):
            return checked
        await self._check_stored(spec, source, checked)
        shape = await self._check_base(spec, source, checked)
        if shape is not None and spec.format in (*GGUF_FORMATS, spec_pb2.EXPORT_FORMAT_GGUF_ADAPTER):
            has_text = await self._has_text(spec, source, checked, token)
            checked.problems += await self._in_thread(_type_problems, shape.config, checked.types, has_text)
        self._check_output(spec, checked, task_id)
        if shape is not None:
            await self._in_thread(self._check_disk, spec, checked, shape)
        return checked

    async def _check_stored(self, spec: spec_pb2.ExportSpec, source: Source, checked: CheckedExport) -> None:
        """The checkpoint or final model; while its task runs, it may still come."""
        if wants_base_alone(spec):
            return
        stored = stored_model(source, spec.checkpoint_step)
        if stored is not None:
            checked.manifest = await self._manifest(stored, checked, STEP)
            checked.stored = stored
        elif source.state in ENDED:
            checked.refuse(STEP, _missing(spec, source))

    async def _manifest(self, stored: Stored, checked: CheckedExport, path: str) -> Manifest | None:
        """The manifest of a stored model, compared with what lies beside it."""
        name = f"the model of step {stored.step}" if stored.step else "the model"
        if not stored.prefix.startswith(OF_TASKS):
            checked.refuse(path, f"{name} is not among what tasks have stored")
            return None
        try:
            return await require_whole(self._store, stored.prefix, stored.manifest_sha256)
        except ArtifactDamaged as error:
            checked.refuse(path, f"{name} cannot be used: {error}")
            return None

    async def _check_base(self, spec: spec_pb2.ExportSpec, source: Source, checked: CheckedExport) -> Shape | None:
        """The model that comes out, None where that is not known yet or does not matter."""
        if spec.format == spec_pb2.EXPORT_FORMAT_ADAPTER:
            return Shape({}, 0, 0)
        if not needs_base(spec, source):
            if checked.stored is None or checked.manifest is None:
                return None
            return await self._stored_shape(checked.stored, checked.manifest, checked)
        if source.spec.finetune.base_model.startswith(TASK_PREFIX):
            return await self._check_base_task(source, checked)
        name = source.spec.finetune.base_model
        try:
            base = await self._in_thread(self.models.resolve, name, field=SOURCE, own_tokenizer=False)
        except ModelkitError as error:
            for problem in error.problems:
                checked.refuse(SOURCE, f"its base model: {problem.message}")
            return None
        checked.base = base
        return Shape(base.config, base.parameters, base.weight_bytes)

    async def _check_base_task(self, source: Source, checked: CheckedExport) -> Shape | None:
        """A base model that is another task's output."""
        if not source.base_model_prefix:
            if source.state in ENDED:
                checked.refuse(SOURCE, f"its base model {source.spec.finetune.base_model} is not stored any more")
            return None
        stored = Stored(source.base_model_prefix, "", 0)
        checked.base_manifest = await self._manifest(stored, checked, SOURCE)
        return await self._stored_shape(stored, checked.base_manifest, checked) if checked.base_manifest else None

    async def _stored_shape(self, stored: Stored, manifest: Manifest, checked: CheckedExport) -> Shape | None:
        """What a model in the object store is like; the number of its weights from their size."""
        try:
            config = orjson.loads(await self._store.get_bytes(f"{stored.prefix}/config.json"))
        except (NotFound, ValueError):
            checked.refuse(SOURCE, "the stored model has no config.json that can be read")
            return None
        size = sum(file.size for file in manifest.files if file.path.endswith(WEIGHTS))
        kind = config.get("dtype") or config.get("torch_dtype")
        return Shape(config, size // WIDTHS.get(str(kind), 2), size)

    async def _has_text(self, spec: spec_pb2.ExportSpec, source: Source, checked: CheckedExport, token: str) -> bool:
        """Whether there are rows for an importance matrix, asked only where one is wanted or a dataset is named."""
        named = spec.HasField("importance_dataset")
        if not named and not any(kind.importance for kind in map(gguf.FILE_TYPES.get, checked.types) if kind):
            return True
        try:
            return bool(await self._rows.read(spec, source, rows=1, token=token))
        except NoRows as error:
            if named:
                checked.refuse(IMPORTANCE, str(error))
            return named

    def _check_output(self, spec: spec_pb2.ExportSpec, checked: CheckedExport, task_id: str) -> None:
        if not spec.output_dir:
            return
        try:
            target = self._roots.target(spec.output_dir, field=OUTPUT)
        except ModelkitError as error:
            checked.problems += [Problem(problem.field, problem.message) for problem in error.problems]
            return
        if not may_be_written(target, task_id):
            checked.refuse(OUTPUT, f"{target} is not empty; choose another directory, or empty it")
        checked.output_dir = target

    def _check_disk(self, spec: spec_pb2.ExportSpec, checked: CheckedExport, shape: Shape) -> None:
        own = _size(checked.manifest)
        found = amounts(
            spec,
            checked.types,
            fetched=own + _size(checked.base_manifest),
            adapter=own,
            weights=shape.weight_bytes,
            parameters=shape.parameters,
        )
        output = checked.output_dir or self._places.output
        for shortage in shortages(found, Places(self._places.work, output, self._places.objects), self._free):
            hint = ", or choose fewer or smaller types" if checked.types else ""
            checked.refuse(OUTPUT, f"{shortage}{hint}")


def _types(spec: spec_pb2.ExportSpec) -> list[str]:
    """The GGUF types that are written."""
    return list(spec.quantizations) or ([DEFAULT_TYPE] if spec.format in GGUF_FORMATS else [])


def _form_problems(spec: spec_pb2.ExportSpec, source: Source) -> Iterator[Problem]:
    """What speaks against a form for a task, whatever its models are."""
    modality = source.spec.finetune.WhichOneof("modality") or "nothing"
    if modality != "language_model":
        yield Problem(SOURCE, f"models of the kind {modality.replace('_', ' ')} cannot be exported in this version")
        return
    if spec.format in ADAPTER_FORMATS and not has_adapter(source):
        message = "the task has trained all weights and has no adapter; choose MERGED, which is its model, or GGUF"
        yield Problem(FORMAT, message)
    if spec.format not in GGUF_FORMATS and spec.quantizations:
        yield Problem(TYPES, "only GGUF and GGUF_BASE have quantization types; leave them out, or choose one of these")
    if spec.format not in GGUF_FORMATS and spec.modelfile:
        yield Problem(MODELFILE, "only GGUF and GGUF_BASE have a Modelfile; leave it out, or choose one of these")
    if spec.format not in GGUF_FORMATS and spec.HasField("importance_dataset"):
        yield Problem(IMPORTANCE, "only GGUF and GGUF_BASE read it; leave it out, or choose one of these")
    classifies = source.spec.finetune.language_model.objective == spec_pb2.OBJECTIVE_CLASSIFICATION
    if classifies and spec.format in (spec_pb2.EXPORT_FORMAT_GGUF, spec_pb2.EXPORT_FORMAT_GGUF_ADAPTER):
        yield Problem(FORMAT, "the task made a text classifier, which GGUF files have no place for; choose MERGED")


def _type_problems(config: Mapping[str, Any], types: list[str], has_text: bool) -> list[Problem]:
    """Every type that a model cannot be written as, and why the model cannot be written at all."""
    if found := gguf.problems(dict(config), [], has_text=has_text):
        return [Problem(FORMAT, text) for text in found]
    return [
        Problem(f"{TYPES}[{place}]", text)
        for place, name in enumerate(types)
        for text in gguf.problems(dict(config), [name], has_text=has_text)
    ]


def _missing(spec: spec_pb2.ExportSpec, source: Source) -> str:
    stored = ", ".join(str(checkpoint.step) for checkpoint in source.checkpoints) or "none"
    if spec.checkpoint_step:
        return f"task {source.task_id} has no stored checkpoint of step {spec.checkpoint_step}; it has {stored}"
    return f"task {source.task_id} has no final model; name one of its checkpoints: {stored}"


def _size(manifest: Manifest | None) -> int:
    return sum(file.size for file in manifest.files if is_model_file(file.path)) if manifest else 0
