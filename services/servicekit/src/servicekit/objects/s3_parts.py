"""Cutting a large object into parts, and what a thread does with one of them."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from minio.datatypes import Part

from servicekit.errors import FailedPrecondition
from servicekit.objects.copying import write_all
from servicekit.objects.s3_client import S3Client

MAX_PARTS = 10_000


@dataclass(frozen=True, slots=True)
class Slice:
    """Part number (from 1) of an object: length bytes from start."""

    number: int
    start: int
    length: int


def slices(size: int, part_bytes: int) -> list[Slice]:
    """Cuts size bytes into parts of part_bytes, larger ones where S3 would not take that many."""
    step = max(part_bytes, math.ceil(size / MAX_PARTS))
    return [Slice(number + 1, start, min(step, size - start)) for number, start in enumerate(range(0, size, step))]


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A local file that must stay as it is while it is uploaded."""

    path: Path
    size: int
    identity: tuple[int, ...]

    @classmethod
    def of(cls, path: Path) -> Self:
        """Takes note of a file. OSError when it cannot be read."""
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
        return cls(path, status.st_size, _identity(status))

    def read(self, start: int, length: int) -> bytes:
        """A range of the file. FailedPrecondition when the file is no longer the same."""
        with self.path.open("rb", buffering=0) as file:
            same = _identity(os.fstat(file.fileno())) == self.identity
            file.seek(start)
            data = file.read(length) if same else b""
        if not same or len(data) != length:
            raise FailedPrecondition(f"{self.path} changed while it was uploaded", reason="FILE_CHANGED")
        return data


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def upload_slice(client: S3Client, name: str, upload: str, file: LocalFile, piece: Slice) -> Part:
    """Sends one part."""
    return client.put_part(name, upload, piece.number, file.read(piece.start, piece.length))


def download_slice(client: S3Client, name: str, etag: str, path: Path, piece: Slice) -> None:
    """Fetches one part into its place in an existing local file."""
    data = client.get_part(name, piece.start, piece.length, etag)
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.lseek(descriptor, piece.start, os.SEEK_SET)
        write_all(descriptor, data)
    finally:
        os.close(descriptor)
