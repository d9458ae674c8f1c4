"""What a training was made from, so that it is never continued with something else unnoticed."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from modelkit.identity import rows_sha256, weights_sha256
from trainer_service.recipes.config import Finetune, Job


def origin_of(job: Job) -> dict[str, Any]:
    """Base model, dataset and parameters of a job, as plain JSON. Raises OSError."""
    finetune = job.finetune
    return {
        "base_model": finetune.base_model or str(job.model_dir),
        "base_model_sha256": weights_sha256(job.model_dir),
        "dataset_sha256": rows_sha256(job.train_file, job.validation_file),
        "parameters": parameters_of(finetune),
    }


def parameters_of(finetune: Finetune) -> dict[str, Any]:
    """The parameters of a training by their dotted names, as plain JSON."""
    return {
        **flatten(dataclasses.asdict(finetune.training), "training."),
        **flatten(dataclasses.asdict(finetune.language_model), "language_model."),
    }


def other_base(before: str, now: str) -> str:
    """That a checkpoint's base model is not the one that was named, or is not what it was."""
    if before == now:
        return f"the files of its base model {now} have changed since it was saved"
    return f"its base model was {before}, whose files differ from those of {now}"


def flatten(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Nested mappings as one with dotted names; tuples become lists, as in JSON."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return flat
