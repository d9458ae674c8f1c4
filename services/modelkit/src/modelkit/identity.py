"""What model and data a training was made from, as hashes that take no longer than a moment."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

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
