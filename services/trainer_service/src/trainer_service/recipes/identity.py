"""What a training was made from, so that it is never continued with something else unnoticed."""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trainer_service.recipes.config import Job

# Files up to this size are hashed whole; of larger ones their size and evenly spread samples, in milliseconds.
WHOLE = {"weights": 1 << 24, "rows": 1 << 30}
SAMPLES, SAMPLE_BYTES = 256, 1 << 16


def origin_of(job: Job) -> dict[str, Any]:
    """Base model, dataset and parameters of a job, as plain JSON. Raises OSError."""
    finetune = job.finetune
    weights = [job.model_dir / "config.json", *sorted(job.model_dir.glob("*.safetensors"))]
    rows = [path for path in (job.train_file, job.validation_file) if path is not None]
    return {
        "base_model": finetune.base_model or str(job.model_dir),
        "base_model_sha256": digest(weights, whole=WHOLE["weights"]),
        "dataset_sha256": digest(rows, whole=WHOLE["rows"]),
        "parameters": {
            **flatten(dataclasses.asdict(finetune.training), "training."),
            **flatten(dataclasses.asdict(finetune.language_model), "language_model."),
        },
    }


def digest(paths: Iterable[Path], *, whole: int) -> str:
    """SHA-256 of files; of those above `whole` bytes only samples are read. Raises OSError."""
    found = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        found.update(size.to_bytes(8, "little"))
        with path.open("rb") as file:
            if size <= whole:
                found.update(hashlib.file_digest(file, "sha256").digest())
                continue
            for sample in range(SAMPLES):
                file.seek(sample * (size - SAMPLE_BYTES) // (SAMPLES - 1))
                found.update(file.read(SAMPLE_BYTES))
    return found.hexdigest()


def flatten(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Nested mappings as one with dotted names; tuples become lists, as in JSON."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return flat
