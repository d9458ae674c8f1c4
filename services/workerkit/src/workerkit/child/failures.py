"""Turns whatever ended a job into the one error event that says why and what to do."""

import errno
import resource
import sys
from dataclasses import dataclass
from typing import Any

from modelkit.errors import ModelkitError
from workerkit.child.errors import RecipeError

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True, slots=True)
class Failure:
    """The content of an error event."""

    reason: str
    message: str
    problems: tuple[str, ...] = ()
    retryable: bool = False


@dataclass(frozen=True, slots=True)
class Outlook:
    """What one kind of job says of its failures.

    unforeseen is the reason of those that nobody expected; memory_advice lists what helps when memory runs out;
    disk_full is said of what a full disk leaves behind.
    """

    unforeseen: str = "JOB_FAILED"
    memory_advice: tuple[str, ...] = ()
    disk_full: str = "free space and try again"


def describe(error: BaseException, outlook: Outlook) -> Failure:
    """Why a job ended; what is not foreseen may succeed when tried again."""
    if isinstance(error, RecipeError):
        return Failure(error.reason, error.message, error.problems, error.retryable)
    if isinstance(error, ModelkitError):
        return Failure(error.reason, str(error), tuple(str(problem) for problem in error.problems))
    if is_out_of_memory(error):
        advice = f". What helps: {'; '.join(outlook.memory_advice)}" if outlook.memory_advice else ""
        return Failure("OUT_OF_MEMORY", out_of_memory_message() + advice, outlook.memory_advice)
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        where = f" at {error.filename}" if error.filename else ""
        return Failure("DISK_FULL", f"the disk is full{where}; {outlook.disk_full}")
    if isinstance(error, OSError):
        return Failure("STORAGE_FAILED", f"files could not be read or written: {error}", retryable=True)
    return Failure(outlook.unforeseen, f"{type(error).__name__}: {error}", retryable=True)


def is_out_of_memory(error: BaseException) -> bool:
    """Memory ran out, on whichever device; on a CPU PyTorch says so in words only."""
    torch = _loaded_torch()
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    words = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in words or "out of memory" in words)


def out_of_memory_message() -> str:
    """What ran out, with the peak of its use."""
    torch = _loaded_torch()
    if torch is not None and torch.cuda.is_initialized():
        peak, total = torch.cuda.max_memory_allocated(), torch.cuda.get_device_properties(0).total_memory
        return f"the GPU's memory ran out: {peak / 2**30:.1f} GiB at the peak, it has {total / 2**30:.1f} GiB"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return f"the memory ran out: {peak / 2**30:.1f} GiB at the peak"


def _loaded_torch() -> Any:
    """PyTorch when the job has loaded it; nothing here does."""
    return sys.modules.get("torch")
