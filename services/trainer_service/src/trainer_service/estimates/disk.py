"""Room on disk: what a training writes where, and what is free there."""

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from trainer_service.estimates.memory import HALF, HALF_FORMATS, trained_tensors
from trainer_service.estimates.optimizers import FLOAT, state_bytes
from trainer_service.estimates.shape import Shape
from trainer_service.recipes.config import Finetune

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "config.json",
)
# Scheduler, random generators, arguments, state and manifest of a checkpoint.
SMALL_FILES_BYTES = 64 << 10
# In the working directory the newest checkpoint stays while the next is written.
LOCAL_CHECKPOINTS = 2


@dataclass(frozen=True, slots=True)
class Places:
    """Directories that a training writes to; objects is None when the object store is not on this machine."""

    work: Path
    output: Path
    objects: Path | None = None


@dataclass(frozen=True, slots=True)
class Files:
    """Bytes of what a training writes: one checkpoint, the finished model, and its merged form if it is wanted."""

    checkpoint: int
    output: int


@dataclass(frozen=True, slots=True)
class Room:
    """A file system: where on it, what it must take and what is free, in bytes, and how many of the checkpoints that
    save_total_limit counts lie there."""

    path: Path
    needed: int
    free: int
    stored: int

    @property
    def suffices(self) -> bool:
        """It takes everything."""
        return self.needed <= self.free


def files(shape: Shape, finetune: Finetune, model_dir: Path) -> Files:
    """Sizes of what a training writes. Full training keeps weights in float32 and writes the result as the base was."""
    parameters = finetune.language_model
    trained = trained_tensors(shape, parameters)
    tokenizer = tokenizer_bytes(model_dir)
    state = state_bytes(finetune.training.optim, trained) + tokenizer + SMALL_FILES_BYTES
    stored = HALF if shape.dtype in HALF_FORMATS else FLOAT
    whole = shape.parameters * stored + tokenizer
    if parameters.method == "FULL":
        return Files(shape.parameters * FLOAT + state, whole)
    adapter = FLOAT * sum(rows * columns for rows, columns in trained)
    merged = whole if parameters.merge_after_training else 0
    return Files(adapter + state, adapter + tokenizer + merged)


def tokenizer_bytes(model_dir: Path) -> int:
    """Size of a model's small files, which go into each checkpoint."""
    return sum((model_dir / name).stat().st_size for name in TOKENIZER_FILES if (model_dir / name).is_file())


def free_bytes(path: Path) -> int:
    """Free space for this user where a path lies or will lie."""
    return shutil.disk_usage(_existing(path)).free


def rooms(
    sizes: Files, *, saved: int, kept: int, places: Places, free: Callable[[Path], int] = free_bytes
) -> list[Room]:
    """Every file system that a training writes to, with all that it writes there.

    A stored checkpoint that is too many is removed after the next one is stored, so there is one more for a while. The
    finished model is linked from the working directory to the output directory where one file system holds both.
    """
    local = min(saved, LOCAL_CHECKPOINTS) * sizes.checkpoint + sizes.output
    stored = kept + (kept < saved)
    needs = [(places.work, local, 0)]
    if places.objects is not None:
        needs.append((places.objects, stored * sizes.checkpoint + sizes.output, stored))
    if _device(places.output) != _device(places.work):
        needs.append((places.output, sizes.output, 0))
    return _by_file_system(needs, free)


def tightest(found: Iterable[Room]) -> Room:
    """The room that lacks most, or, when all suffice, that of the stored checkpoints."""
    candidates = list(found)
    lacking = [room for room in candidates if not room.suffices]
    if lacking:
        return max(lacking, key=lambda room: room.needed - room.free)
    return max(candidates, key=lambda room: room.stored)


def _by_file_system(needs: list[tuple[Path, int, int]], free: Callable[[Path], int]) -> list[Room]:
    found: dict[int, Room] = {}
    for path, needed, stored in needs:
        device = _device(path)
        known = found.get(device)
        if known is None:
            found[device] = Room(path, needed, free(path), stored)
        else:
            where = path if stored else known.path
            found[device] = Room(where, known.needed + needed, known.free, known.stored + stored)
    return list(found.values())


def _device(path: Path) -> int:
    return _existing(path).stat().st_dev


def _existing(path: Path) -> Path:
    """The path itself, or the nearest directory above it that exists."""
    while not os.path.lexists(path):
        path = path.parent
    return path
