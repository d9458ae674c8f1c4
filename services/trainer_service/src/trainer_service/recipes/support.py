"""What this version can train, told without importing a training library: the check at submit asks it too."""

from collections.abc import Iterator
from typing import Any

from google.protobuf.json_format import MessageToDict

from servicekit.errors import Problem
from trainer_service.recipes.config import Finetune, LanguageModel, Lora, Training
from tunesmith.task.v1 import spec_pb2

OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop")
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
# The module with the recipe of each modality that has one.
RECIPES = {"language_model": "trainer_service.recipes.language_model"}


def unsupported(spec: spec_pb2.FinetuneSpec) -> list[Problem]:
    """Everything in a specification that this version cannot train, with field paths such as finetune.training.optim.

    Raises InvalidJob when the specification cannot be read.
    """
    parsed = Finetune.parse(MessageToDict(spec, preserving_proto_field_name=True))
    return [Problem(f"finetune.{problem.field}", problem.message) for problem in problems_of(parsed)]


def unfit(spec: spec_pb2.FinetuneSpec, config: dict[str, Any]) -> list[Problem]:
    """Everything in a specification that the base model with this config.json cannot do."""
    parsed = Finetune.parse(MessageToDict(spec, preserving_proto_field_name=True)).language_model
    problems = []
    width = config.get("hidden_size") or config.get("n_embd")
    if parsed.method == "LORA" and isinstance(width, int) and parsed.lora.r > width:
        message = f"{parsed.lora.r} is more than the width of the model ({width})"
        problems.append(Problem("finetune.language_model.lora.r", message))
    longest = config.get("max_position_embeddings") or config.get("n_positions")
    if isinstance(longest, int) and parsed.max_seq_length > longest:
        message = f"{parsed.max_seq_length} tokens are more than the model can read ({longest})"
        problems.append(Problem("finetune.language_model.max_seq_length", message))
    return problems


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
    if parameters.objective != "SUPERVISED":
        name = parameters.objective.lower()
        yield Problem("language_model.objective", f"{name} is not available in this version; use OBJECTIVE_SUPERVISED")
    if parameters.method not in ("FULL", "LORA"):
        message = f"{parameters.method} is not available in this version; use METHOD_LORA or METHOD_FULL"
        yield Problem("language_model.method", message)
    if parameters.packing:
        yield Problem("language_model.packing", "packing is not available in this version; leave it out")


def _lora(lora: Lora, method: str) -> Iterator[Problem]:
    if method == "LORA" and lora.bias not in ("none", "all", "lora_only"):
        yield Problem("language_model.lora.bias", f"{lora.bias!r} is not one of none, all, lora_only")


def _training(training: Training) -> Iterator[Problem]:
    if training.optim not in OPTIMIZERS:
        listed = ", ".join(OPTIMIZERS)
        yield Problem("training.optim", f"{training.optim!r} is not available in this version; use one of {listed}")
    if training.lr_scheduler_type not in SCHEDULERS:
        listed = ", ".join(SCHEDULERS)
        yield Problem("training.lr_scheduler_type", f"{training.lr_scheduler_type!r} is not known; use one of {listed}")
    if training.fp16 and training.bf16:
        yield Problem("training.fp16", "fp16 and bf16 exclude each other; choose one")
    if training.eval_strategy == "NO":
        if training.lr_scheduler_type == "reduce_lr_on_plateau":
            yield Problem("training.lr_scheduler_type", "reduce_lr_on_plateau needs an eval_strategy other than NO")
        if training.early_stopping_patience:
            yield Problem("training.early_stopping_patience", "early stopping needs an eval_strategy other than NO")
