"""The headers of safetensors files, checked against the file's size without reading a weight."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

MAX_HEADER_BYTES = 100_000_000
ITEM_BITS = {
    "F64": 64,
    "I64": 64,
    "U64": 64,
    "C64": 64,
    "F32": 32,
    "I32": 32,
    "U32": 32,
    "F16": 16,
    "BF16": 16,
    "I16": 16,
    "U16": 16,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I8": 8,
    "U8": 8,
    "BOOL": 8,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F4": 4,
}


class HeaderError(ValueError):
    """The file is not a whole safetensors file."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Type and shape of a stored tensor; begin and end are its bytes, counted from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int = 0
    end: int = 0

    @property
    def elements(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


def read_header(path: Path) -> tuple[bytes, dict[str, TensorInfo]]:
    """The raw header and the tensors it describes. Raises HeaderError, or OSError when the file cannot be read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise HeaderError(f"the file has {size} bytes, too few for a header")
        length = int.from_bytes(prefix, "little")
        if length > MAX_HEADER_BYTES or length > size - 8:
            raise HeaderError(f"the header claims {length} bytes, the file has {size}")
        raw = file.read(length)
    try:
        header = orjson.loads(raw)
    except ValueError:
        raise HeaderError("the header is not JSON") from None
    if not isinstance(header, dict):
        raise HeaderError("the header is not an object")
    tensors, ranges = {}, []
    for name, entry in header.items():
        if name != "__metadata__":
            tensors[name] = info = _tensor(name, entry)
            ranges.append((info.begin, info.end))
    end = _check_contiguous(ranges)
    if end != size - 8 - length:
        raise HeaderError(f"the file should have {8 + length + end} bytes and has {size}")
    return raw, tensors


def _tensor(name: str, entry: Any) -> TensorInfo:
    try:
        begin, end = entry["data_offsets"]
        info = TensorInfo(entry["dtype"], tuple(entry["shape"]), begin, end)
        bits = ITEM_BITS[info.dtype] * info.elements
    except (TypeError, KeyError, ValueError):
        raise HeaderError(f"the entry of tensor {name[:80]!r} is malformed") from None
    if not all(type(value) is int and value >= 0 for value in (*info.shape, begin, end)):
        raise HeaderError(f"the entry of tensor {name[:80]!r} is malformed")
    if (end - begin) * 8 != bits:
        raise HeaderError(f"tensor {name[:80]!r} has {end - begin} bytes, its shape needs {bits // 8}")
    return info


def _check_contiguous(ranges: list[tuple[int, int]]) -> int:
    position = 0
    for begin, end in sorted(ranges):
        if begin != position:
            raise HeaderError("tensors overlap or leave gaps")
        position = end
    return position
