"""Rows of numbers in the types of GGUF, by the functions that llama.cpp's own quantizer calls for each row."""

import ctypes
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from export_service.gguf.errors import not_possible
from export_service.gguf.file_types import UNQUANTIZED
from modelkit.number_formats import Floats, from_float32, is_finite

Bytes = NDArray[np.uint8]
FLOATS = ctypes.POINTER(ctypes.c_float)


def row_size(columns: int, kind: GGMLQuantizationType) -> int:
    """Bytes of a row."""
    block, size = GGML_QUANT_SIZES[kind]
    return columns // block * size


def encode(rows: Floats, kind: GGMLQuantizationType) -> Bytes:
    """Rows as the bytes of a type. Raises GgufNotPossible for numbers beyond its range. May be the same memory."""
    if kind not in UNQUANTIZED:
        return _quantize(rows.reshape(-1, rows.shape[-1]), kind)
    found = from_float32(rows, kind.name)
    if not is_finite(found, kind.name):
        raise not_possible(f"weights beyond 65504 do not fit into {kind.name}; choose BF16 or F32", "quantizations")
    return np.ascontiguousarray(found).reshape(-1).view(np.uint8)


def _quantize(rows: Floats, kind: GGMLQuantizationType) -> Bytes:
    rows = np.ascontiguousarray(rows)
    count, columns = rows.shape
    found = np.empty(count * row_size(columns, kind), np.uint8)
    written = _library().ggml_quantize_chunk(
        int(kind), rows.ctypes.data_as(FLOATS), found.ctypes.data_as(ctypes.c_void_p), 0, count, columns, None
    )
    if written != found.nbytes:
        raise not_possible(f"llama.cpp wrote {written} bytes of {kind.name} where {found.nbytes} are expected")
    return found


@cache
def _library() -> Any:
    """The part of llama.cpp that knows the types; it computes on rows and touches neither files nor devices."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise not_possible("llama-cpp-python is not installed; install it as the set-up does")
    library = ctypes.CDLL(str(next((Path(spec.origin).parent / "lib").glob("libggml-base.*"))))
    function = library.ggml_quantize_chunk
    number = ctypes.c_int64
    function.argtypes = [ctypes.c_int, FLOATS, ctypes.c_void_p, number, number, number, FLOATS]
    function.restype = ctypes.c_size_t
    return library
