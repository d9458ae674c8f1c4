"""The files of a checkpoint by name. Imports no training library."""

import re
from pathlib import Path

STATE = "trainer_state.json"
RNG = "rng_state"
STATES = ("optimizer.pt", "scheduler.pt", "scaler.pt", f"{RNG}.pt", STATE)
WEIGHTS = ("adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json")


def missing_from(checkpoint: Path) -> list[str]:
    """What a directory lacks to be a checkpoint that a training can go on from."""
    missing = [name for name in STATES if not (checkpoint / name).is_file()]
    if not any((checkpoint / name).is_file() for name in WEIGHTS):
        missing.append(" or ".join(WEIGHTS[:2]))
    return missing


def step_of(checkpoint: Path) -> int:
    """The optimiser step that a checkpoint's directory is named after, 0 when it has another name."""
    found = re.fullmatch(r"checkpoint-(\d+)", checkpoint.name)
    return int(found.group(1)) if found else 0
