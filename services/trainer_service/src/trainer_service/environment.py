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
from trainer_service.fork_launcher import ForkLauncher
from trainer_service.launcher import LaunchError

PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "safetensors", "tokenizers")
MIN_DISK_BYTES = 5 << 30
MIN_MEMORY_BYTES = 2 << 30
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
            Check(
                "memory",
                memory >= MIN_MEMORY_BYTES,
                f"{memory / 2**30:.1f} GiB available",
                "close other programs, or choose a smaller model",
            ),
            *(_folder(name, path) for name, path in self._folders.items()),
            _driver(),
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


def _package(name: str) -> Check:
    try:
        return Check(name, True, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Check(name, False, "not installed", f"install {name}, or run `make setup`")


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
