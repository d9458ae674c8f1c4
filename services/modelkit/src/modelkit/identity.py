"""What model and data a training was made from, as hashes that take no longer than a moment."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from modelkit.errors import InvalidModel, Problem
from modelkit.inspection import read_json

# A training notes its origin under this key in the state of a checkpoint, and beside a finished model in this file.
ORIGIN = "origin"
ORIGIN_FILE = "origin.json"
STATE = "trainer_state.json"
BASE_SHA256, BASE_NAME = "base_model_sha256", "base_model"

# Files up to this size are hashed whole; of larger ones their size and evenly spread samples, in milliseconds.
WHOLE_WEIGHTS, WHOLE_ROWS = 1 << 24, 1 << 30
SAMPLES, SAMPLE_BYTES = 256, 1 << 16


def weights_sha256(directory: Path) -> str:
    """Identity of the model in a directory. Raises OSError."""
    return digest([directory / "config.json", *sorted(directory.glob("*.safetensors"))], whole=WHOLE_WEIGHTS)


def rows_sha256(train: Path, validation: Path | None = None) -> str:
    """Identity of the rows that a training learns from and is evaluated on. Raises OSError."""
    return digest([train, *([validation] if validation else [])], whole=WHOLE_ROWS)


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


def recorded_origin(model: Path) -> dict[str, Any]:
    """What a checkpoint or a finished model notes of its origin; empty when it notes nothing that can be read."""
    for name, part in ((STATE, ORIGIN), (ORIGIN_FILE, "")):
        try:
            content = read_json(model / name)
        except (OSError, ValueError):
            continue
        origin = content.get(part) if part else content
        if isinstance(origin, dict) and isinstance(origin.get(BASE_SHA256), str):
            return origin
    return {}


def require_same_base(model: Path, base: Path, *, name: str = "") -> bool:
    """Compares a base model with the one that a checkpoint or a finished adapter was trained on.

    False when nothing was noted to compare with. name is what people call the base model. Raises InvalidModel when the
    two differ, or OSError.
    """
    origin = recorded_origin(model)
    if not origin:
        return False
    if origin[BASE_SHA256] != weights_sha256(base):
        message = (
            f"the files of {name or base} are not those that the adapter was trained on "
            f"({origin.get(BASE_NAME) or 'another model'}); put the former files back, or train again"
        )
        raise InvalidModel(Problem("base_model", message), reason="BASE_MODEL_CHANGED")
    return True
