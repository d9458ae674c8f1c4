"""Devices of this machine, asked of the driver itself: the service process never loads torch."""

import contextlib
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pynvml  # type: ignore[import-untyped]

VISIBLE = "CUDA_VISIBLE_DEVICES"
MEMORY_GROUP = Path("/sys/fs/cgroup")
GROUP_FILES = (
    ("", "memory.max", "memory.current"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)


@dataclass(frozen=True, slots=True)
class Device:
    """A device; memory in bytes. capability is the CUDA compute capability, for example 8.6, 0.0 of a CPU."""

    id: str
    name: str
    type: str
    memory_total: int
    memory_free: int
    cores: int = 0
    capability: float = 0.0


def cpu(group: Path = MEMORY_GROUP) -> Device:
    """The processor and the machine's memory, or what the control group leaves of it to this process."""
    memory = _meminfo()
    total, free = memory.get("MemTotal", 0), memory.get("MemAvailable", 0)
    if limit := _group_limit(group):
        total, free = min(total, limit[0]), min(free, max(0, limit[0] - limit[1]))
    return Device("cpu", _cpu_name(), "cpu", total, free, os.cpu_count() or 1)


def _meminfo() -> dict[str, int]:
    """What the kernel says of the machine's memory, in bytes."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return {name: int(value.split()[0]) * 1024 for name, _, value in (line.partition(":") for line in lines)}
    return {}


def _group_limit(group: Path) -> tuple[int, int] | None:
    """Limit and use of a control group's memory in bytes, in either version's files; None without a limit."""
    for folder, limit, used in GROUP_FILES:
        with contextlib.suppress(OSError, ValueError):  # without a limit memory.max holds the word "max"
            return int((group / folder / limit).read_text()), int((group / folder / used).read_text())
    return None


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def gpus() -> list[Device]:
    """The CUDA devices that this process may use, numbered in the order of the PCI bus; none without a driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        found = [_gpu(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()
    allowed = os.environ.get(VISIBLE)
    return found if allowed is None else [device for device in found if device.id in allowed.split(",")]


def _gpu(index: int) -> Device:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory: Any = pynvml.nvmlDeviceGetMemoryInfo(handle)
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    name = _text(pynvml.nvmlDeviceGetName(handle))
    return Device(str(index), name, "cuda", int(memory.total), int(memory.free), capability=major + minor / 10)


def driver_version() -> str:
    """Version of the NVIDIA driver; empty without one."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ""
    try:
        return _text(pynvml.nvmlSystemGetDriverVersion())
    finally:
        pynvml.nvmlShutdown()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


class DevicePool:
    """Hands out the devices of this worker, so that two tasks at once get different GPUs."""

    def __init__(self, find: Callable[[], list[Device]] = gpus) -> None:
        self._find = find
        self._in_use: list[str] = []

    @contextlib.contextmanager
    def reserved(self, wanted: str) -> Iterator[str]:
        """The ids to train on: those wanted, or else the least used GPU with most memory; empty for the CPU."""
        ids = wanted.split(",") if wanted else self._default()
        self._in_use += ids
        try:
            yield ",".join(ids)
        finally:
            for name in ids:
                self._in_use.remove(name)

    def _default(self) -> list[str]:
        free = sorted(self._find(), key=lambda device: (self._in_use.count(device.id), -device.memory_free))
        return [free[0].id] if free else []
