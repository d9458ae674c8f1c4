"""Brings the base model of an evaluation into memory, once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import torch

from modelkit.adapters import CONFIG, Adapter
from modelkit.allocation import keep_freed_memory
from modelkit.errors import InvalidCheckpoint, Problem
from modelkit.inspection import inspect, read_json
from modelkit.loading import load_config, load_model, load_tokenizer

TOKENIZER = "tokenizer.json"
HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that only reads and writes: nothing of it is trained."""

    model: Any
    tokenizer: Any
    config: Any
    labels: tuple[str, ...]
    device: torch.device

    @property
    def pad_id(self) -> int:
        """The token that fills up rows."""
        known = self.tokenizer
        return int(known.pad_token_id if known.pad_token_id is not None else known.eos_token_id or 0)


def load(base: Path, checkpoint: Path | None, *, classifies: bool) -> Loaded:
    """The base model with the tokenizer, chat template and classes of a checkpoint of it. Raises ModelkitError.

    Quantized training (QLoRA) is scored on the weights as they are stored, as exports use them.
    """
    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    labels = classes_of(checkpoint) if classifies and checkpoint is not None else ()
    config: Any = load_config(base)
    model: Any = load_model(base, dtype=_dtype(base, device), device=device, labels=labels or None)
    model.eval()
    own = checkpoint is not None and (checkpoint / TOKENIZER).is_file()
    tokenizer = load_tokenizer(checkpoint if own and checkpoint else base, config)
    return Loaded(model, tokenizer, config, labels, device)


def classes_of(checkpoint: Path) -> tuple[str, ...]:
    """The classes of a classifier in the order of their numbers. Raises ModelkitError."""
    if (checkpoint / CONFIG).is_file():
        with Adapter(checkpoint) as adapter:
            return adapter.labels
    try:
        names = read_json(checkpoint / "config.json")["id2label"]
        return tuple(str(names[str(number)]) for number in range(len(names)))
    except (OSError, ValueError, KeyError, TypeError, orjson.JSONDecodeError) as error:
        raise InvalidCheckpoint(Problem("", f"{checkpoint.name} names no classes: {error}")) from error


def _dtype(base: Path, device: torch.device) -> torch.dtype:
    """The format that the weights are stored in; a CPU computes float16 too slowly and takes float32."""
    stored = HALF.get(inspect(base).dtype, torch.float32)
    return torch.float32 if stored == torch.float16 and device.type == "cpu" else stored
