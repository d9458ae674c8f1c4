"""Parameters that were not given take the platform's defaults; where the value of each came from."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from google.protobuf.message import Message

from parameterkit import BY_NAME, defaults, rules
from parameterkit.values import assign, is_set
from tunesmith.task.v1 import spec_pb2, task_pb2

_DEFAULTS = tuple((BY_NAME[name], value) for name, value in defaults().items())
_DERIVED = tuple((BY_NAME[name], BY_NAME[origin]) for name, origin in rules.DERIVED.items())
_LANGUAGE_MODEL = "language_model."

_GGUF = (spec_pb2.EXPORT_FORMAT_GGUF, spec_pb2.EXPORT_FORMAT_GGUF_BASE)

MIN_SAMPLES, MAX_SAMPLES = 5, 20
SAMPLE_RATIO, SAMPLE_SEED = 0.3, 42
QUANTIZATION = "Q4_K_M"
SAMPLING: Mapping[str, float] = {
    "max_tokens": 256,
    "temperature": 0.3,
    "top_p": 0.9,
    "top_k": 20,
    "min_p": 0.0,
    "repetition_penalty": 1.1,
    "presence_penalty": 0.0,
    "seed": 42,
}

Sources = dict[str, int]


def fill(
    spec: spec_pb2.TaskSpec, default_fields: Iterable[str], template_fields: Collection[str] = frozenset()
) -> Sources:
    """Sets every parameter that is not set, in place; where each came from, by field path.

    Fields below a path in default_fields were filled by the caller's surface, so they count as defaults too. Those in
    template_fields were taken from a template.
    """
    prefixes = tuple(default_fields)
    sources: Sources = {
        path: task_pb2.PARAMETER_SOURCE_TEMPLATE
        if path in template_fields
        else task_pb2.PARAMETER_SOURCE_DEFAULT
        if any(path == prefix or path.startswith(f"{prefix}.") for prefix in prefixes)
        else task_pb2.PARAMETER_SOURCE_USER
        for path in set_fields(spec)
    }
    if spec.HasField("finetune"):
        _fill_finetune(spec.finetune)
    elif spec.HasField("evaluate"):
        _fill_evaluate(spec.evaluate)
    elif spec.HasField("export"):
        _fill_export(spec.export)
    for path in set_fields(spec):
        sources.setdefault(path, task_pb2.PARAMETER_SOURCE_DEFAULT)
    return sources


def _fill_finetune(finetune: spec_pb2.FinetuneSpec) -> None:
    language_model = finetune.HasField("language_model")
    rules.settle_method(finetune)
    method = rules.value(finetune, "language_model.method")
    scheduler = rules.value(finetune, "training.lr_scheduler_type")
    for row, value in _DEFAULTS:
        if row.path.startswith(_LANGUAGE_MODEL) and not language_model:
            continue
        if rules.applies(row.name, method, scheduler) and not is_set(finetune, row.path):
            assign(finetune, row, value)
    for row, origin in _DERIVED:
        if not is_set(finetune, row.path):
            assign(finetune, row, rules.value(finetune, origin.path))


def _fill_evaluate(evaluate: spec_pb2.EvaluateSpec) -> None:
    """The bound of the samples that is not given gives way to the one that is."""
    fewest = evaluate.min_samples if evaluate.HasField("min_samples") else MIN_SAMPLES
    most = evaluate.max_samples if evaluate.HasField("max_samples") else max(MAX_SAMPLES, fewest)
    values = {
        "max_samples": most,
        "min_samples": min(fewest, most),
        "sample_ratio": SAMPLE_RATIO,
        "seed": SAMPLE_SEED,
    }
    if not evaluate.HasField("dataset"):
        values["split"] = spec_pb2.EVALUATION_SPLIT_AUTO
    _set_missing(evaluate, values)
    _set_missing(evaluate.sampling, SAMPLING)


def _fill_export(export: spec_pb2.ExportSpec) -> None:
    if export.format in _GGUF:
        if not export.quantizations:
            export.quantizations.append(QUANTIZATION)
        _set_missing(export, {"modelfile": True})


def _set_missing(message: Any, values: Mapping[str, float]) -> None:
    for name, value in values.items():
        if not message.HasField(name):
            setattr(message, name, value)


def set_fields(message: Message, prefix: str = "") -> Iterator[str]:
    """Paths of the values that are set, for example "finetune.training.seed"; a list counts as one value."""
    for field, value in message.ListFields():
        path = f"{prefix}{field.name}"
        if isinstance(value, Message):
            yield from set_fields(value, f"{path}.")
        else:
            yield path
