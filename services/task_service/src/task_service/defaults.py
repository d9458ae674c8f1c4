"""The platform's default of every parameter, and where the value of each came from."""

from collections.abc import Iterable, Iterator

from google.protobuf.message import Message

from tunesmith.task.v1 import spec_pb2, task_pb2

TRAINING_DEFAULTS: dict[str, object] = {
    "num_train_epochs": 3.0,
    "max_steps": -1,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "learning_rate": 2e-4,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "warmup_steps": 0,
    "warmup_ratio": 0.0,
    "lr_scheduler_type": "linear",
    "optim": "adamw_torch",
    "logging_steps": 10,
    "save_strategy": spec_pb2.INTERVAL_STRATEGY_STEPS,
    "save_steps": 500,
    "save_total_limit": 0,
    "save_interval_minutes": 0,
    "eval_strategy": spec_pb2.INTERVAL_STRATEGY_NO,
    "early_stopping_patience": 0,
    "early_stopping_threshold": 0.0,
    "seed": 42,
    "fp16": False,
    "bf16": False,
    "tf32": False,
    "gradient_checkpointing": False,
    "dataloader_num_workers": 0,
}
# A default that is the value of another parameter.
TRAINING_DERIVED = {"per_device_eval_batch_size": "per_device_train_batch_size", "eval_steps": "logging_steps"}
LANGUAGE_MODEL_DEFAULTS: dict[str, object] = {
    "objective": spec_pb2.OBJECTIVE_SUPERVISED,
    "method": spec_pb2.METHOD_LORA,
    "max_seq_length": 512,
    "packing": False,
    "max_samples": 0,
    "eval_ratio": 0.0,
}
LORA_DEFAULTS: dict[str, object] = {"r": 8, "alpha": 16, "dropout": 0.05, "bias": "none"}
QUANTIZATION_DEFAULTS: dict[str, object] = {"type": "nf4", "compute_dtype": "bfloat16", "double_quant": False}
LOW_RANK = frozenset({spec_pb2.METHOD_LORA, spec_pb2.METHOD_QLORA})

Sources = dict[str, int]


def fill(spec: spec_pb2.TaskSpec, default_fields: Iterable[str]) -> Sources:
    """Sets every parameter that is not set, in place; where each came from, by field path.

    Fields below a path in default_fields were filled by the caller's surface, so they count as defaults too.
    """
    prefixes = tuple(default_fields)
    sources: Sources = {
        path: task_pb2.PARAMETER_SOURCE_DEFAULT
        if any(path == prefix or path.startswith(f"{prefix}.") for prefix in prefixes)
        else task_pb2.PARAMETER_SOURCE_USER
        for path in set_fields(spec)
    }
    if spec.HasField("finetune"):
        _fill_finetune(spec.finetune)
    for path in set_fields(spec):
        sources.setdefault(path, task_pb2.PARAMETER_SOURCE_DEFAULT)
    return sources


def _fill_finetune(finetune: spec_pb2.FinetuneSpec) -> None:
    training = finetune.training
    _set_missing(training, TRAINING_DEFAULTS)
    _set_missing(training, {name: getattr(training, origin) for name, origin in TRAINING_DERIVED.items()})
    if finetune.HasField("language_model"):
        language_model = finetune.language_model
        _set_missing(language_model, LANGUAGE_MODEL_DEFAULTS)
        if language_model.method in LOW_RANK:
            _set_missing(language_model.lora, LORA_DEFAULTS)
        if language_model.method == spec_pb2.METHOD_QLORA:
            _set_missing(language_model.quantization, QUANTIZATION_DEFAULTS)


def _set_missing(message: Message, defaults: dict[str, object]) -> None:
    for name, value in defaults.items():
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
