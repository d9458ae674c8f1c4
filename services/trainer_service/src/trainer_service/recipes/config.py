"""The configuration of a job as recipes read it: job.json in plain types, every default in place.

The names and defaults are those of tunesmith.task.v1.FinetuneSpec; a test compares the two.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_type_hints

import orjson

from parameterkit import rules
from workerkit.child.errors import InvalidJob

CACHE_BYTES = 20 << 30
MODALITIES = ("language_model", "image_classifier", "object_detector", "text_to_image")


@dataclass(frozen=True, slots=True)
class Training:
    """Optimisation, saving, evaluation and logging. Steps are optimiser steps.

    save_total_limit counts stored checkpoints, which is the worker's business; dataloader_num_workers changes nothing
    here, because a thread always prepares the next steps. lr_scheduler_num_cycles 0 means one descent.
    """

    num_train_epochs: float = 3.0
    max_steps: int = -1
    per_device_train_batch_size: int = 4
    per_device_eval_batch_size: int = 0
    gradient_accumulation_steps: int = 1
    learning_rate: float = 2e-4
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    warmup_steps: int = 0
    warmup_ratio: float = 0.0
    lr_scheduler_type: str = "linear"
    optim: str = "adamw_torch"
    logging_steps: int = 10
    save_strategy: str = "STEPS"
    save_steps: int = 500
    save_total_limit: int = 0
    save_interval_minutes: int = 0
    eval_strategy: str = "NO"
    eval_steps: int = 0
    early_stopping_patience: int = 0
    early_stopping_threshold: float = 0.0
    seed: int = 42
    fp16: bool = False
    bf16: bool = False
    tf32: bool = False
    gradient_checkpointing: bool = False
    dataloader_num_workers: int = 0
    dataloader_pin_memory: bool = True
    lr_scheduler_num_cycles: float = 0.0
    min_lr_rate: float = 0.1
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    log_level: str = "info"
    divergence_action: str = "STOP"
    stall_action: str = "WARN"
    overfitting_action: str = "WARN"
    parallelism: str = "DATA"

    @property
    def eval_batch_size(self) -> int:
        """Sequences per device when evaluating."""
        return self.per_device_eval_batch_size or self.per_device_train_batch_size

    @property
    def eval_interval(self) -> int:
        """Steps between two evaluations."""
        return self.eval_steps or self.logging_steps

    def warmup(self, total_steps: int) -> int:
        """Steps of warm-up."""
        return rules.warmup(self.warmup_steps, self.warmup_ratio, total_steps)

    def total_steps(self, per_epoch: int) -> int:
        """Steps of the whole training."""
        return rules.total_steps(self.max_steps, self.num_train_epochs, per_epoch)


@dataclass(frozen=True, slots=True)
class Lora:
    """A low-rank adapter. Without target_modules every linear layer of the blocks gets one."""

    r: int = 8
    alpha: int = 16
    dropout: float = 0.05
    target_modules: tuple[str, ...] = ()
    bias: str = "none"


@dataclass(frozen=True, slots=True)
class Quantization:
    """Quantization of frozen weights."""

    type: str = "nf4"
    compute_dtype: str = "bfloat16"
    double_quant: bool = False


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A causal language model. max_seq_length counts tokens."""

    objective: str = "SUPERVISED"
    method: str = "LORA"
    max_seq_length: int = 512
    packing: bool = False
    max_samples: int = 0
    eval_ratio: float = 0.0
    lora: Lora = field(default_factory=Lora)
    quantization: Quantization = field(default_factory=Quantization)
    test_ratio: float = 0.0
    shuffle: bool = True
    padding_free: bool = True
    merge_after_training: bool = False
    train_on_prompt: bool = False
    tokenizer_path: str = ""
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of a dataset's columns; those that are empty are detected from the data."""

    text: str = ""
    prompt: str = ""
    response: str = ""
    system: str = ""
    messages: str = ""
    label: str = ""


@dataclass(frozen=True, slots=True)
class Finetune:
    """What a job is asked to do. modality is one of MODALITIES, or empty; only its parameters matter."""

    base_model: str
    modality: str
    training: Training
    language_model: LanguageModel
    columns: Columns = field(default_factory=Columns)
    resume_from_checkpoint: str = ""

    @classmethod
    def parse(cls, spec: Mapping[str, Any]) -> "Finetune":
        """Reads a FinetuneSpec in proto JSON with the proto's field names. Raises InvalidJob with every problem."""
        problems: list[str] = []
        modality = next((name for name in MODALITIES if name in spec), "")
        dataset = spec.get("dataset") or {}
        language_model = spec.get("language_model", {})
        if isinstance(language_model, Mapping) and "quantization" in language_model:
            language_model = {"method": "QLORA", **language_model}  # what it means when no method is named
        parsed = cls(
            base_model=str(spec.get("base_model", "")),
            modality=modality,
            training=_read(Training, spec.get("training", {}), "training", problems),
            language_model=_read(LanguageModel, language_model, "language_model", problems),
            columns=_read(Columns, dataset.get("columns", {}), "dataset.columns", problems),
            resume_from_checkpoint=str(spec.get("resume_from_checkpoint", "")),
        )
        if problems:
            raise InvalidJob("the specification cannot be read: " + "; ".join(problems), problems)
        return parsed


@dataclass(frozen=True, slots=True)
class Job:
    """A job on this machine. resume_from is a verified checkpoint; the output goes to output_dir in one step.

    cache_dir, of at most cache_bytes, outlives the job and holds what was worked out from data; without one that is
    kept in work_dir. tokenizer_dir holds a tokenizer in place of the model's own.
    """

    finetune: Finetune
    model_dir: Path
    train_file: Path
    work_dir: Path
    output_dir: Path
    validation_file: Path | None = None
    test_file: Path | None = None
    tokenizer_dir: Path | None = None
    cache_dir: Path | None = None
    cache_bytes: int = CACHE_BYTES
    resume_from: Path | None = None
    processes: int = 1
    cuda_visible_devices: str = ""
    predicted_memory_bytes: int = 0

    @property
    def checkpoints(self) -> Path:
        """Where checkpoint-<step> directories go."""
        return self.work_dir / "checkpoints"

    @property
    def runs(self) -> Path:
        """Where TensorBoard files go while training."""
        return self.work_dir / "runs"

    @classmethod
    def load(cls, directory: Path) -> "Job":
        """Reads job.json. Raises InvalidJob."""
        try:
            content = orjson.loads((directory / "job.json").read_bytes())
            names = ("model_dir", "train_file", "work_dir", "output_dir")
            paths = {name: _path(directory, content[name]) for name in names}
            optional = {
                name: _path(directory, content[name])
                for name in ("validation_file", "test_file", "tokenizer_dir", "cache_dir", "resume_from")
                if content.get(name)
            }
            return cls(
                finetune=Finetune.parse(content["spec"]),
                processes=max(1, int(content.get("processes") or 1)),
                cuda_visible_devices=str(content.get("cuda_visible_devices") or ""),
                predicted_memory_bytes=int(content.get("predicted_memory_bytes") or 0),
                cache_bytes=int(content.get("cache_bytes") or CACHE_BYTES),
                **paths,
                **optional,
            )
        except KeyError as error:
            raise InvalidJob(f"{directory}/job.json lacks {error}") from None
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise InvalidJob(f"{directory}/job.json cannot be read: {error}") from None


T = TypeVar("T")


def _path(directory: Path, value: str) -> Path:
    return directory / value


def _read(kind: type[T], values: Any, where: str, problems: list[str]) -> T:
    """A dataclass from a JSON object; keys that it does not have and values of other types are problems."""
    if not isinstance(values, Mapping):
        problems.append(f"{where} is not an object")
        return kind()
    types = get_type_hints(kind)
    known = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    problems += [f"{where}.{name} is not known" for name in values if name not in known]
    read = {}
    for name in known & values.keys():
        path = f"{where}.{name}"
        if isinstance(values[name], str) and values[name].endswith("_UNSPECIFIED"):
            continue
        if hasattr(types[name], "__dataclass_fields__"):
            read[name] = _read(types[name], values[name], path, problems)
            continue
        try:
            read[name] = _convert(types[name], values[name])
        except (TypeError, ValueError):
            problems.append(f"{path} cannot be {values[name]!r}")
    return kind(**read)


def _convert(kind: Any, value: Any) -> Any:
    if kind == tuple[str, ...]:
        return tuple(_convert(str, item) for item in value)
    if isinstance(kind, UnionType):
        kind = get_args(kind)[0]
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if type(value) is not kind:
        raise TypeError(value)
    return _without_prefix(value) if kind is str else value


def _without_prefix(value: str) -> str:
    """Proto enums write their type's name before each value: METHOD_LORA, INTERVAL_STRATEGY_STEPS."""
    for prefix in ("METHOD_", "OBJECTIVE_", "INTERVAL_STRATEGY_", "WATCH_ACTION_", "PARALLELISM_"):
        if value.startswith(prefix):
            return value.removeprefix(prefix)
    return value
