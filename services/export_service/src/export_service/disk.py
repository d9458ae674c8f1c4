"""Room on disk: what an export writes where, and what is free there."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from export_service.formats import FORMATS
from tunesmith.task.v1 import spec_pb2

MEBIBYTE = 1 << 20
# Small matrices and vectors are kept wider than a type says; llama.cpp's tables are of models of 8 billion weights.
GGUF_MARGIN = 1.1
SMALL_FILES_BYTES = 32 * MEBIBYTE
BITS = {item.quantization: item.bits_per_weight for item in FORMATS if item.quantization}
DIRECT = frozenset({"F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"})


@dataclass(frozen=True, slots=True)
class Places:
    """Directories that an export writes to; objects is None when the object store is not on this machine."""

    work: Path
    output: Path
    objects: Path | None = None


@dataclass(frozen=True, slots=True)
class Amounts:
    """Bytes that are fetched, written for the time being, and left as the result."""

    fetched: int
    passing: int
    result: int


@dataclass(frozen=True, slots=True)
class Shortage:
    """A file system that cannot take what an export writes there, in bytes."""

    path: Path
    needed: int
    free: int

    def __str__(self) -> str:
        needed, free = (-(-number // MEBIBYTE) for number in (self.needed, self.free))
        return (
            f"the disk of {self.path} is too small: the export needs about {needed} MiB there and {free} MiB are free; "
            "make room there"
        )


def amounts(
    spec: spec_pb2.ExportSpec, types: Sequence[str], *, fetched: int, adapter: int, weights: int, parameters: int
) -> Amounts:
    """What an export writes: adapter and weights are the bytes of the adapter's files and of the whole model's."""
    if spec.format == spec_pb2.EXPORT_FORMAT_ADAPTER:
        return Amounts(fetched, 0, adapter + SMALL_FILES_BYTES)
    if spec.format == spec_pb2.EXPORT_FORMAT_GGUF_ADAPTER:  # compared on a file of the base model
        return Amounts(fetched, weights, adapter + SMALL_FILES_BYTES)
    if spec.format == spec_pb2.EXPORT_FORMAT_MERGED:
        return Amounts(fetched, 0, weights + SMALL_FILES_BYTES)
    result = sum(int(parameters * BITS.get(name, 0.0) / 8 * GGUF_MARGIN) for name in types) + SMALL_FILES_BYTES
    return Amounts(fetched, 0 if DIRECT.issuperset(types) else weights, result)


def shortages(found: Amounts, places: Places, free: Callable[[Path], int]) -> Iterator[Shortage]:
    """Every file system that cannot take its part. Where one has both, a result is linked to its directory."""
    needs = [(places.work, found.fetched + found.passing + found.result)]
    if places.objects is not None:
        needs.append((places.objects, found.result))
    if _device(places.output) != _device(places.work):
        needs.append((places.output, found.result))
    sums: dict[int, tuple[Path, int]] = {}
    for path, needed in needs:
        known, before = sums.get(_device(path), (path, 0))
        sums[_device(path)] = known, before + needed
    for path, needed in sums.values():
        there = free(_existing(path))
        if needed > there:
            yield Shortage(path, needed, there)


def free_bytes(path: Path) -> int:
    """Free space for this user on the disk of a directory."""
    return shutil.disk_usage(path).free


def _device(path: Path) -> int:
    return _existing(path).stat().st_dev


def _existing(path: Path) -> Path:
    """The path itself, or the nearest directory above it that exists."""
    while not os.path.lexists(path):
        path = path.parent
    return path
