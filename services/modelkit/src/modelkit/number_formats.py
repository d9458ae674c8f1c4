"""The number formats of stored weights in NumPy, which holds bfloat16 as the upper halves of float32 numbers."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

# How NumPy holds what safetensors calls so; BF16 is held as bits.
STORED: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(np.uint16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


def to_float32(stored: Array, dtype: str) -> Floats:
    """Stored numbers in float32; exact but for F64 and large integers. May be the same array."""
    if dtype != "BF16":
        return stored.astype(np.float32, copy=False)
    values = np.empty(stored.shape, np.float32)
    bits = values.view(np.uint32)
    bits[...] = stored
    np.left_shift(bits, 16, out=bits)
    return values


def from_float32(values: Floats, dtype: str) -> Array:
    """Numbers rounded once to the nearest that a format has, ties to even; BF16 as its bits. Wants finite numbers.

    What is beyond a format's range becomes infinite, as is_finite tells.
    """
    if dtype != "BF16":
        with np.errstate(over="ignore"):
            return values.astype(STORED[dtype], copy=False)
    bits = values.view(np.uint32)
    rounded = np.right_shift(bits, 16)
    np.bitwise_and(rounded, 1, out=rounded)
    np.add(rounded, 0x7FFF, out=rounded)
    np.add(rounded, bits, out=rounded)
    np.right_shift(rounded, 16, out=rounded)
    return rounded.astype(np.uint16)


def is_finite(stored: Array, dtype: str) -> bool:
    """Whether all stored numbers are finite."""
    if dtype != "BF16":
        return bool(np.isfinite(stored).all())
    exponents = np.bitwise_and(stored, 0x7F80)
    return not bool((exponents == 0x7F80).any())
