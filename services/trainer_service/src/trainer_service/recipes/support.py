"""What this version can train, told without importing a training library: the check at submit asks it too."""

from collections.abc import Collection, Iterator
from functools import partial
from typing import Any

from google.protobuf.json_format import MessageToDict

from modelkit.architectures import sequence_classifiers
from parameterkit import rules
from servicekit.errors import Problem
from trainer_service.recipes.config import Finetune, LanguageModel, Lora, Training
from tunesmith.task.v1 import spec_pb2

# Other names of the same optimisers.
OPTIMIZER_ALIASES = {
    "adamw_torch_fused": "adamw_torch",
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw": "paged_adamw_32bit",
    "stableadamw": "stable_adamw",
    "schedule_free_radamw": "schedule_free_radam",
}
OPTIMIZERS = (
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_8bit",
    "adamw_bnb_8bit",
    "paged_adamw",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "adafactor",
    "lomo",
    "galore_adamw",
    "galore_adamw_8bit",
    "grokadamw",
    "stableadamw",
    "stable_adamw",
    "schedule_free_radamw",
    "schedule_free_radam",
    "sgd",
    "adagrad",
    "rmsprop",
)
# Optimisers that change each weight by itself alone, so that weights may be spread over devices.
SHARDABLE = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")
SCHEDULERS = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "reduce_lr_on_plateau",
    "cosine_with_min_lr",
    "warmup_stable_decay",
)
# Where transformers' polynomial schedule ends.
POLYNOMIAL_END = 1e-7
OUTPUT_LAYER = "lm_head"
ADAPTER_METHODS = ("LORA", "QLORA")
# The module with the recipe of each modality that has one.
RECIPES = {"language_model": "trainer_service.recipes.language_model"}


def unsupported(spec: spec_pb2.FinetuneSpec) -> list[Problem]:
    """Everything in a specification that this version cannot train, with field paths such as finetune.training.optim.

    Raises InvalidJob when the specification cannot be read.
    """
    parsed = Finetune.parse(MessageToDict(spec, preserving_proto_field_name=True))
    problems = [*problems_of(parsed), *_several_devices(parsed, spec.devices)]
    return [Problem(f"finetune.{problem.field}", problem.message) for problem in problems]


def without_effect(spec: spec_pb2.FinetuneSpec) -> list[Problem]:
    """What a training would pass over in silence, so that no new task may ask for it."""
    parameters = spec.language_model
    if not parameters.HasField("quantization") or parameters.method not in (spec_pb2.METHOD_FULL, spec_pb2.METHOD_LORA):
        return []
    named = spec_pb2.Method.Name(parameters.method)
    message = f"weights are quantized with METHOD_QLORA, not with {named}; choose it, or leave quantization out"
    return [Problem("finetune.language_model.quantization", message)]


def unfit(spec: spec_pb2.FinetuneSpec, config: dict[str, Any], layers: Collection[str] = ()) -> list[Problem]:
    """Everything in a specification that the base model with this config.json cannot do.

    layers are the names of its matrices ("q_proj", ...), when they are known.
    """
    parsed = Finetune.parse(MessageToDict(spec, preserving_proto_field_name=True)).language_model
    problems = []
    width = config.get("hidden_size") or config.get("n_embd")
    if parsed.method in ADAPTER_METHODS and isinstance(width, int) and parsed.lora.r > width:
        message = f"{parsed.lora.r} is more than the width of the model ({width})"
        problems.append(Problem("finetune.language_model.lora.r", message))
    if parsed.method in ADAPTER_METHODS and layers:
        problems += _absent_targets(parsed.lora, layers)
    if parsed.objective == "CLASSIFICATION" and (family := config.get("model_type")) not in sequence_classifiers():
        message = f"transformers has no text classifier for the family {family!r}; use a model of another family"
        problems.append(Problem("finetune.language_model.objective", message))
    longest = config.get("max_position_embeddings") or config.get("n_positions")
    if isinstance(longest, int) and parsed.max_seq_length > longest:
        message = f"{parsed.max_seq_length} tokens are more than the model can read ({longest})"
        problems.append(Problem("finetune.language_model.max_seq_length", message))
    return problems


def _absent_targets(lora: Lora, layers: Collection[str]) -> Iterator[Problem]:
    present = {*layers, OUTPUT_LAYER}  # which has no weights of its own where it is tied to the embeddings
    if absent := [name for name in lora.target_modules if name.rpartition(".")[2] not in present]:
        message = f"the model has no {', '.join(absent)}; it has {', '.join(sorted(present))}"
        yield Problem("finetune.language_model.lora.target_modules", message)


def problems_of(finetune: Finetune) -> list[Problem]:
    """As `unsupported`, with paths within the specification."""
    if finetune.modality not in RECIPES:
        name = finetune.modality.replace("_", " ") or "nothing"
        return [Problem(finetune.modality, f"training of {name} is not available in this version")]
    return [
        *_language_model(finetune.language_model),
        *_lora(finetune.language_model.lora, finetune.language_model.method),
        *_training(finetune.training),
    ]


def _language_model(parameters: LanguageModel) -> Iterator[Problem]:
    if parameters.packing and parameters.objective == "CLASSIFICATION":
        yield Problem("language_model.packing", "a classifier reads each text by itself; leave packing out")
    if len(parameters.labels) == 1:
        yield Problem("language_model.labels", "one class leaves nothing to learn; name at least two, or none")


def _lora(lora: Lora, method: str) -> Iterator[Problem]:
    if method in ADAPTER_METHODS and lora.bias not in ("none", "all", "lora_only"):
        yield Problem("language_model.lora.bias", f"{lora.bias!r} is not one of none, all, lora_only")


def _training(training: Training) -> Iterator[Problem]:
    if training.optim not in OPTIMIZERS:
        listed = ", ".join(OPTIMIZERS)
        yield Problem("training.optim", f"{training.optim!r} is not known; use one of {listed}")
    if training.lr_scheduler_type not in SCHEDULERS:
        listed = ", ".join(SCHEDULERS)
        yield Problem("training.lr_scheduler_type", f"{training.lr_scheduler_type!r} is not known; use one of {listed}")
    if training.lr_scheduler_type == "polynomial" and training.learning_rate <= POLYNOMIAL_END:
        yield Problem("training.learning_rate", f"polynomial ends at {POLYNOMIAL_END}; begin with a higher rate")
    for path, message in (breach.problem() for breach in rules.training_breaches(partial(_plain, training))):
        yield Problem(path, message)
    if training.optim == "lomo":
        yield from _lomo(training)


def _plain(training: Training, path: str) -> Any:
    """A value in the words of the parameter table, such as "no" for NO."""
    value = getattr(training, path.removeprefix("training."))
    return value.lower() if isinstance(value, str) else value


def _lomo(training: Training) -> Iterator[Problem]:
    """It changes the weights within the backward pass and keeps no gradients."""
    if training.gradient_accumulation_steps > 1:
        message = "lomo keeps no gradients to add up; use 1 and a larger per_device_train_batch_size"
        yield Problem("training.gradient_accumulation_steps", message)
    if training.fp16:
        yield Problem("training.fp16", "lomo cannot scale its loss, as float16 needs; use bf16")


def _several_devices(finetune: Finetune, devices: spec_pb2.DeviceRequest) -> Iterator[Problem]:
    if max(devices.processes, len(devices.cuda_visible_devices.split(","))) == 1:
        return
    training, sharded = finetune.training, finetune.training.parallelism == "FULLY_SHARDED"
    if training.optim == "lomo":
        yield Problem("training.optim", "lomo keeps no gradients to exchange; use one device, or adafactor")
    if sharded and training.optim not in SHARDABLE:
        message = f"{training.optim} needs whole matrices; use PARALLELISM_DATA, or one of {', '.join(SHARDABLE)}"
        yield Problem("training.optim", message)
    if sharded and finetune.language_model.method == "QLORA":
        message = "quantized weights cannot be spread over devices; use PARALLELISM_DATA, or METHOD_LORA"
        yield Problem("training.parallelism", message)
