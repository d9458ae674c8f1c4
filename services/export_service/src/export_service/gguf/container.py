"""A GGUF file that is laid out first and filled afterwards, in any order and by several threads."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

from export_service.gguf.quantizer import Bytes, row_size
from modelkit.disk import sync

ALIGNMENT = 32
READABLE = 0o644


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of the file by name, shape (as NumPy orders it) and type."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType

    @property
    def row(self) -> int:
        """Bytes of a row; of a vector, which is one row, those of a value."""
        columns = self.shape[-1] if len(self.shape) > 1 else 1
        return row_size(columns, self.kind)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.shape[0] * self.row


class Container:
    """A file that appears under its name only when it is whole: without an error at the end of the with block.

    metadata is by full keys: texts, truth values, whole numbers (below 2^32), floats (in float32) and lists of them.
    Raises OSError, also when the disk is too small.
    """

    def __init__(self, path: Path, architecture: str, metadata: Mapping[str, Any], entries: Sequence[Entry]) -> None:
        self.path = path
        self._staging = path.with_name(f".{path.name}.tmp")
        self._staging.unlink(missing_ok=True)
        self._positions: dict[str, int] = {}
        self._entries = {entry.name: entry for entry in entries}
        try:
            position = self._write_header(architecture, metadata, entries)
            for entry in entries:
                self._positions[entry.name] = position
                position += -(-entry.size // ALIGNMENT) * ALIGNMENT
            self._descriptor = _room(self._staging, position)
        except BaseException:
            self._staging.unlink(missing_ok=True)
            raise

    def __enter__(self) -> "Container":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        os.close(self._descriptor)
        if error is None:
            publish(self._staging, self.path)
        else:
            self._staging.unlink(missing_ok=True)

    def write(self, name: str, first: int, data: Bytes) -> None:
        """Writes rows of a tensor from a row on; several threads may do so."""
        view, position = data.data, self._positions[name] + first * self._entries[name].row
        while view:
            count = os.pwrite(self._descriptor, view, position)
            view, position = view[count:], position + count

    def _write_header(self, architecture: str, metadata: Mapping[str, Any], entries: Sequence[Entry]) -> int:
        """Where the tensors begin."""
        writer = GGUFWriter(self._staging, architecture)
        for key, value in metadata.items():
            _add(writer, key, value)
        for entry in entries:
            writer.add_tensor_info(entry.name, entry.shape, np.dtype(np.float32), entry.size, entry.kind)
        writer.write_header_to_file(self._staging)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        return -(-self._staging.stat().st_size // ALIGNMENT) * ALIGNMENT


def _room(path: Path, size: int) -> int:
    """A descriptor of a file that has its full size on disk."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.posix_fallocate(descriptor, 0, size)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def publish(staging: Path, path: Path) -> None:
    """Gives a whole file its name, once its content is on disk."""
    staging.chmod(READABLE)
    sync(staging)
    staging.replace(path)
    sync(path.parent)


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_array(key, value)
