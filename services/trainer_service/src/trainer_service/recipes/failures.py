"""Turns whatever ended a job into the one error event that says why and what to do."""

import errno
import resource
from dataclasses import dataclass

import torch

from modelkit.errors import ModelkitError
from trainer_service.recipes.errors import RecipeError
from trainer_service.recipes.remedies import OUT_OF_MEMORY

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True, slots=True)
class Failure:
    """The content of an error event."""

    reason: str
    message: str
    problems: tuple[str, ...] = ()
    retryable: bool = False


def describe(error: BaseException) -> Failure:
    """Why a job ended; what is not foreseen may succeed when tried again."""
    if isinstance(error, RecipeError):
        return Failure(error.reason, error.message, error.problems, error.retryable)
    if isinstance(error, ModelkitError):
        return Failure(error.reason, str(error), tuple(str(problem) for problem in error.problems))
    if is_out_of_memory(error):
        return Failure(
            "OUT_OF_MEMORY", f"{out_of_memory_message()}. What helps: {'; '.join(OUT_OF_MEMORY)}", OUT_OF_MEMORY
        )
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        where = f" at {error.filename}" if error.filename else ""
        return Failure("DISK_FULL", f"the disk is full{where}; checkpoints saved before are intact")
    if isinstance(error, OSError):
        return Failure("STORAGE_FAILED", f"files could not be read or written: {error}", retryable=True)
    return Failure("TRAINING_FAILED", f"{type(error).__name__}: {error}", retryable=True)


def is_out_of_memory(error: BaseException) -> bool:
    """Memory ran out, on whichever device; on a CPU PyTorch says so in words only."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    words = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in words or "out of memory" in words)


def out_of_memory_message() -> str:
    """What ran out, with the peak of its use."""
    if torch.cuda.is_initialized():
        peak, total = torch.cuda.max_memory_allocated(), torch.cuda.get_device_properties(0).total_memory
        return f"the GPU's memory ran out: {peak / 2**30:.1f} GiB at the peak, it has {total / 2**30:.1f} GiB"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return f"the memory ran out: {peak / 2**30:.1f} GiB at the peak"
