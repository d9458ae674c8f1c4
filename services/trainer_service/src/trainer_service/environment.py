"""Checks that everything training needs is installed and works, with advice where it does not."""

import asyncio
import json
import platform
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from servicekit.bus import EventBus
from servicekit.errors import TunesmithError
from servicekit.objects import ObjectStore
from trainer_service import devices
from workerkit.fork_launcher import ForkLauncher
from workerkit.launcher import LaunchError

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "safetensors",
    "tokenizers",
    "sentencepiece",
    "pyarrow",
    "tensorboard",
)
# Each serves one optimiser, or the search for near duplicates; training does without them.
OPTIONAL_PACKAGES = {
    "grokadamw": "choose another optimiser than grokadamw",
    "schedulefree": "choose another optimiser than schedule_free_radam",
    "torch-optimi": "choose another optimiser than stable_adamw",
    "datasketch": "reports of datasets then count exact duplicates only",
}
MIN_DISK_BYTES = 5 << 30
MIN_MEMORY_BYTES = 2 << 30
# The least that the smallest models need for LoRA; what CUDA 12 and 13 still run on; what computes in bfloat16.
MIN_VRAM_BYTES = 4 * 10**9
MIN_CAPABILITY = 7.5
BF16_CAPABILITY = 8.0
PROBE_SECONDS = 30.0
PROBE = "trainer_service.probe:run"


@dataclass(frozen=True, slots=True)
class Check:
    """A check: what was found, and what to do when it is not fine. needed: training cannot do without."""

    name: str
    ok: bool
    found: str
    advice: str = ""
    needed: bool = True


class Environment:
    """Checks this worker's machine, libraries and neighbours."""

    def __init__(
        self,
        *,
        launcher: ForkLauncher,
        store: ObjectStore,
        bus: EventBus,
        task_service: Callable[[], Awaitable[None]],
        folders: dict[str, Path],
    ) -> None:
        self._launcher = launcher
        self._store = store
        self._bus = bus
        self._task_service = task_service
        self._folders = folders

    async def check(self) -> list[Check]:
        """Every check."""
        probed, store, service = await asyncio.gather(self._probe(), self._check_store(), self._check_task_service())
        local = await asyncio.to_thread(self._local)
        return [*local, *probed, store, self._check_bus(), service]

    def _local(self) -> list[Check]:
        memory = devices.cpu().memory_free
        return [
            Check("python", True, platform.python_version()),
            *(_package(name) for name in PACKAGES),
            *(_package(name, instead) for name, instead in OPTIONAL_PACKAGES.items()),
            Check(
                "memory",
                memory >= MIN_MEMORY_BYTES,
                f"{memory / 2**30:.1f} GiB available",
                "close other programs, or choose a smaller model",
            ),
            *(_folder(name, path) for name, path in self._folders.items()),
            _driver(),
            *(_gpu(device) for device in devices.gpus()),
        ]

    async def _probe(self) -> list[Check]:
        advice = "reinstall with `make setup`; the log of the trainer has the details"
        if not self._launcher.warm:
            return [Check("training libraries", False, "still loading", "wait a moment; if it stays so, see the log")]
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                found = await self._ask_child()
        except (LaunchError, TimeoutError, ValueError) as error:
            return [Check("training libraries", False, f"no answer from a training process: {error!r}", advice)]
        checks = [Check("training step", found["compute"]["ok"], found["compute"]["found"], advice)]
        checks.append(
            Check("bfloat16", found["bf16"]["ok"], found["bf16"]["found"], "train without bf16", needed=False)
        )
        quantization = found["quantization"]
        instead = f"train without QLoRA, or {advice}"
        checks.append(Check("4-bit quantization", quantization["ok"], quantization["found"], instead, needed=False))
        cuda = found["cuda"]
        name = cuda["found"] or "no CUDA device; training runs on the processor"
        checks.append(Check("cuda", cuda["ok"], name, "update the NVIDIA driver to one that fits this torch"))
        return checks

    async def _ask_child(self) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="tunesmith-probe-") as folder:
            child = await self._launcher.start(Path(folder), {}, entry=PROBE)
            try:
                async for lines in child.events:
                    return dict(json.loads(lines[0]))
            finally:
                child.kill()
                await child.wait()
        raise ValueError("it ended without a word")

    async def _check_store(self) -> Check:
        try:
            await self._store.stat("environment-check")
        except TunesmithError as error:
            return Check("object store", False, error.message, "see that the store runs and the address is right")
        return Check("object store", True, "answers")

    async def _check_task_service(self) -> Check:
        try:
            await self._task_service()
        except TunesmithError as error:
            return Check("task service", False, error.message, "see that the task service runs")
        return Check("task service", True, "answers")

    def _check_bus(self) -> Check:
        connected = self._bus.connected
        return Check("message broker", connected, "connected" if connected else "not connected", "see that NATS runs")


def _package(name: str, instead: str = "") -> Check:
    """Whether a package is installed; training does without one for which there is something to do instead."""
    advice = f"install {name}, or run `make setup`"
    try:
        return Check(name, True, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Check(name, False, "not installed", f"{advice}; {instead}" if instead else advice, needed=not instead)


def _folder(name: str, path: Path) -> Check:
    advice = f"make {path} writable and keep {MIN_DISK_BYTES >> 30} GiB free"
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"x")
        free = shutil.disk_usage(path).free
    except OSError as error:
        return Check(name, False, str(error), advice)
    return Check(name, free >= MIN_DISK_BYTES, f"{free / 2**30:.1f} GiB free in {path}", advice)


def _driver() -> Check:
    version = devices.driver_version()
    found = f"{version}, {len(devices.gpus())} devices" if version else "none; training runs on the processor"
    return Check("nvidia driver", True, found, needed=False)


def _gpu(device: devices.Device) -> Check:
    """A GPU as far as training depends on it. One that will not do is no reason not to train on the processor."""
    total, free = device.memory_total / 10**9, device.memory_free / 10**9
    formats = "bfloat16" if device.capability >= BF16_CAPABILITY else "no bfloat16, use fp16"
    found = f"{device.name}: {total:.1f} GB, {free:.1f} free, compute capability {device.capability:.1f}, {formats}"
    advice = []
    if device.capability < MIN_CAPABILITY:
        advice.append(f"it is older than this torch supports ({MIN_CAPABILITY}); train on the processor or another GPU")
    if device.memory_total < MIN_VRAM_BYTES:
        advice.append(f"LoRA needs {MIN_VRAM_BYTES / 10**9:.0f} GB or more; train a small model on the processor")
    elif device.memory_free < MIN_VRAM_BYTES:
        advice.append("end the programs that use its memory")
    return Check(f"gpu {device.id}", not advice, found, "; ".join(advice), needed=False)
