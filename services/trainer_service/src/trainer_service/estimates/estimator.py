"""Puts the estimates of one training together: its memory by method, its disk, its checkpoints, its time."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from google.protobuf.json_format import MessageToDict

from modelkit import datasets
from modelkit.datasets import DatasetFiles
from modelkit.inspection import inspect
from modelkit.token_lengths import token_lengths
from trainer_service.devices import Device, cpu, gpus
from trainer_service.estimates.calibration import Calibration, Run
from trainer_service.estimates.disk import Files, Places, Room, files, free_bytes, rooms, tightest
from trainer_service.estimates.memory import Memory, Setting, memory, weights_bytes
from trainer_service.estimates.shape import Shape, read_shape
from trainer_service.estimates.steps import Rows, Steps, checkpoints_kept, checkpoints_saved, steps
from trainer_service.recipes.config import Finetune
from tunesmith.task.v1 import spec_pb2

T = TypeVar("T")

METHODS = ("FULL", "LORA", "QLORA")
SAMPLED_ROWS = 256
# Rows that were not sampled may be longer than the longest of the sample.
LONGER = 1.5
REMEMBERED = 32


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a training needs and what there is. Sizes in bytes; seconds and steps_per_second are 0 while unknown."""

    finetune: Finetune
    memory: Memory
    by_method: dict[str, int]
    weights: int
    device: Device
    files: Files
    rooms: tuple[Room, ...]
    saved: int
    kept: int
    steps: Steps
    rows: Rows
    steps_per_second: float
    run: Run

    @property
    def seconds(self) -> float:
        """How long it trains."""
        return self.steps.total / self.steps_per_second if self.steps_per_second else 0.0

    @property
    def room(self) -> Room:
        """The file system that lacks most, or that of the checkpoints."""
        return tightest(self.rooms)

    @property
    def fits_memory(self) -> bool:
        """The device has enough memory, other programs aside."""
        return self.memory.total <= self.device.memory_total

    @property
    def fits_disk(self) -> bool:
        """Every file system takes what is written to it."""
        return all(room.suffices for room in self.rooms)

    def largest_limit(self) -> int:
        """The largest save_total_limit with which everything fits on the disks; 0 when none does."""
        room = self.room
        if not room.stored or any(not other.suffices for other in self.rooms if other != room):
            return 0
        spare = room.free - (room.needed - room.stored * self.files.checkpoint)
        return max(0, min(self.kept, spare // self.files.checkpoint) - 1)  # one more is there while it takes over


class Estimator:
    """Estimates trainings on this machine. Reads files; call it in a thread, from as many as you like."""

    def __init__(
        self,
        places: Places,
        calibration: Calibration,
        *,
        find_gpus: Callable[[], list[Device]] = gpus,
        find_cpu: Callable[[], Device] = cpu,
        free: Callable[[Path], int] = free_bytes,
    ) -> None:
        self.calibration = calibration
        self._places = places
        self._find_gpus = find_gpus
        self._find_cpu = find_cpu
        self._free = free
        self._shapes = _Remembered[Shape]()
        self._samples = _Remembered[tuple[float, int]]()

    def estimate(
        self,
        spec: spec_pb2.FinetuneSpec,
        model_dir: Path,
        dataset: DatasetFiles | None,
        count: int,
        *,
        output_dir: Path | None = None,
        devices: str | None = None,
        samples: bool = True,
    ) -> Estimate:
        """The estimate of a training on count rows.

        devices are the GPUs that a worker chose, empty for the CPU; None: those that the worker would choose. Without
        samples no row is tokenised unless steps depend on it, and rows count as max_seq_length tokens. Raises
        InvalidJob when the specification cannot be read, ValueError or OSError when the model cannot.
        """
        finetune = Finetune.parse(MessageToDict(spec, preserving_proto_field_name=True))
        shape = self._shape(model_dir)
        device, processes = self._device(spec.devices, devices)
        samples = samples or finetune.language_model.packing
        rows = self._rows(finetune, model_dir, dataset, count, samples=samples)
        plan = steps(finetune, rows, processes)
        run = _run(finetune, shape, plan, device, processes)
        pace = self.calibration.steps_per_second(run)
        setting = Setting(device.type, processes, rows.longest)
        return Estimate(
            finetune=finetune,
            memory=memory(shape, finetune, setting),
            by_method={method: memory(shape, _by(finetune, method), setting).total for method in METHODS},
            weights=weights_bytes(shape, finetune, device.type),
            device=device,
            steps=plan,
            rows=rows,
            steps_per_second=pace,
            run=run,
            **self._disk(finetune, files(shape, finetune, model_dir), plan, pace, output_dir),
        )

    def _disk(
        self, finetune: Finetune, sizes: Files, plan: Steps, pace: float, output_dir: Path | None
    ) -> dict[str, Any]:
        """What an Estimate says of files."""
        saved = checkpoints_saved(finetune.training, plan, plan.total / pace if pace else 0.0)
        kept = checkpoints_kept(finetune.training, saved)
        places = replace(self._places, output=output_dir or self._places.output)
        found = rooms(sizes, saved=saved, kept=kept, places=places, free=self._free)
        return {"files": sizes, "rooms": tuple(found), "saved": saved, "kept": kept}

    def _shape(self, model_dir: Path) -> Shape:
        status = (model_dir / "config.json").stat()

        def read() -> Shape:
            found = inspect(model_dir)
            return read_shape(model_dir, found.config, found.dtype)

        return self._shapes.get((model_dir, status.st_mtime_ns, status.st_ino), read)

    def _device(self, wanted: spec_pb2.DeviceRequest, devices: str | None) -> tuple[Device, int]:
        """The device that limits a training, and how many processes train."""
        named = wanted.cuda_visible_devices if devices is None else devices
        present = {device.id: device for device in self._find_gpus()} if devices is None or devices else {}
        chosen = [present[name] for name in named.split(",") if name in present]
        if not named and present:
            chosen = [max(present.values(), key=lambda device: device.memory_free)]
        if chosen:
            return min(chosen, key=lambda device: device.memory_total), len(chosen)
        return self._find_cpu(), max(1, wanted.processes)

    def _rows(
        self, finetune: Finetune, model_dir: Path, dataset: DatasetFiles | None, count: int, *, samples: bool
    ) -> Rows:
        if dataset is None or not samples:
            return Rows(count, dataset is not None and dataset.validation is not None)
        status = dataset.train.stat()
        key = (model_dir, dataset.train, status.st_mtime_ns, status.st_size, finetune.language_model.objective)
        limit = finetune.language_model.max_seq_length

        def sample() -> tuple[float, int]:
            lengths = token_lengths(model_dir, datasets.preview(dataset, SAMPLED_ROWS))
            cut = [min(length, limit) for length in lengths]
            longest = max(lengths, default=0) * (LONGER if count > len(lengths) else 1)
            return (sum(cut) / len(cut) if cut else 0.0), min(limit, int(longest))

        mean, longest = self._samples.get((*key, limit, count), sample)
        return Rows(count, dataset.validation is not None, mean, limit if finetune.language_model.packing else longest)


class _Remembered(Generic[T]):
    """Results by key, the least recently used forgotten."""

    def __init__(self) -> None:
        self._known: OrderedDict[object, T] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: object, find: Callable[[], T]) -> T:
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        value = find()
        with self._lock:
            self._known[key] = value
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return value


def _run(finetune: Finetune, shape: Shape, plan: Steps, device: Device, processes: int) -> Run:
    return Run(
        device=device.name,
        processes=processes,
        method=finetune.language_model.method,
        checkpointing=finetune.training.gradient_checkpointing,
        parameters=shape.parameters,
        tokens_per_step=plan.tokens,
    )


def _by(finetune: Finetune, method: str) -> Finetune:
    return replace(finetune, language_model=replace(finetune.language_model, method=method))


def fitting(estimate: Estimate) -> Iterable[str]:
    """Methods that fit the device."""
    return [method for method, needed in estimate.by_method.items() if needed <= estimate.device.memory_total]
