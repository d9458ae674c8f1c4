"""Tensors read one by one, or some of their rows, from safetensors files: no more is in memory than was asked for."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from modelkit.errors import InvalidModel, Problem
from modelkit.inspection import INDEX, SINGLE, read_json
from modelkit.number_formats import STORED, Array, Floats, to_float32
from modelkit.safetensors_header import HeaderError, TensorInfo, read_header


class TensorFile:
    """An open safetensors file. Raises HeaderError when it is damaged, or OSError.

    tensors are in the order in which they lie in the file; start is the position of the first one's first byte. Several
    threads may read at once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        raw, tensors = read_header(path)
        self.tensors = dict(sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)))
        self.start = 8 + len(raw)
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __enter__(self) -> "TensorFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        os.close(self.descriptor)

    def read(self, name: str, first: int = 0, last: int | None = None) -> Array:
        """A tensor, or its rows from first up to, not including, last, as it is stored; bfloat16 as its bits.

        Raises InvalidModel for a type that this program does not compute with, or OSError.
        """
        info = self.tensors[name]
        if info.dtype not in STORED:
            raise InvalidModel(Problem("", f"{self.path.name}: {name} is stored as {info.dtype}, which cannot be read"))
        rows = info.shape[0] if info.shape else 1
        first, last = min(first, rows), rows if last is None else min(last, rows)
        shape: tuple[int, ...] = (last - first, *info.shape[1:]) if info.shape else ()
        found: Array = np.empty(shape, STORED[info.dtype])
        self._fill(found, self.start + info.begin + first * ((info.end - info.begin) // max(rows, 1)))
        return found

    def _fill(self, array: Array, position: int) -> None:
        view = array.reshape(-1).view(np.uint8).data
        while view:
            count = os.preadv(self.descriptor, [view], position)
            if count == 0:
                raise OSError(f"{self.path} has become shorter while it was read")
            view, position = view[count:], position + count


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of a model, in the file that holds it."""

    name: str
    file: TensorFile
    info: TensorInfo

    def read(self, first: int = 0, last: int | None = None) -> Array:
        """The tensor or some of its rows as stored; see TensorFile.read."""
        return self.file.read(self.name, first, last)

    def values(self, first: int = 0, last: int | None = None) -> Floats:
        """The tensor or some of its rows in float32; see TensorFile.read."""
        return to_float32(self.read(first, last), self.info.dtype)


class ModelTensors(Mapping[str, StoredTensor]):
    """Every tensor of a model directory by name: of model.safetensors, or of the files that its index names.

    Raises InvalidModel when a file is damaged or missing.
    """

    def __init__(self, directory: Path) -> None:
        self.files: dict[str, TensorFile] = {}
        self._tensors: dict[str, StoredTensor] = {}
        self.indexed = (directory / INDEX).is_file()
        try:
            for shard in shards_of(directory):
                file = self.files[shard] = TensorFile(directory / shard)
                self._tensors |= {name: StoredTensor(name, file, info) for name, info in file.tensors.items()}
        except (HeaderError, OSError, ValueError) as error:
            self.close()
            raise InvalidModel(Problem("base_model", f"{directory}: the weights cannot be read: {error}")) from error

    def __enter__(self) -> "ModelTensors":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def __getitem__(self, name: str) -> StoredTensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def close(self) -> None:
        """Closes the files."""
        for file in self.files.values():
            file.close()
        self.files = {}


def shards_of(directory: Path) -> list[str]:
    """Names of the files that hold a model's weights. Raises ValueError for an unusable index, or OSError."""
    if not (directory / INDEX).is_file():
        return [SINGLE]
    index = read_json(directory / INDEX).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise ValueError(f"{INDEX} has no weight_map")
    names = sorted({str(name) for name in index.values()})
    if outside := [name for name in names if Path(name).name != name]:
        raise ValueError(f"{INDEX} names {outside[0]!r}, which is not a file beside it")
    return names
