"""How much memory a training takes: of its GPU when it has one, else of the machine."""

import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

from trainer_service.recipes.world import World

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
GROUP = Path("/sys/fs/cgroup")


def used_bytes(device: torch.device) -> int:
    """What this process holds now."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * PAGE_BYTES


def peak_bytes(device: torch.device) -> int:
    """The most that this process has held so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_of_all(world: World) -> int:
    """The most that a device has held so far: processes that train on the CPU share its memory, a GPU has one."""
    own = peak_bytes(world.device)
    return own if world.device.type == "cuda" else int(world.sum([float(own)])[0])


def used_of_all(world: World) -> int:
    """What is held of a device now, as `peak_of_all`."""
    own = used_bytes(world.device)
    return own if world.device.type == "cuda" else int(world.sum([float(own)])[0])


def available_bytes() -> int:
    """What the machine can still give without swapping, within the limit of this process's group."""
    free = sys.maxsize
    with suppress(OSError, ValueError, IndexError):
        text = Path("/proc/meminfo").read_text()
        free = int(text.split("MemAvailable:")[1].split()[0]) * 1024
    with suppress(OSError, ValueError):  # without a limit memory.max is the word "max"
        limit, used = (int((GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, limit - used)
    return max(0, free)
