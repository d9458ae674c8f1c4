"""The process that quantizes a file with libllama: reads one JSON object, ends with status 0 when it is done."""

import ctypes
import json
import os
import signal
import sys
from typing import Any

import numpy as np

SET_PARENT_DEATH_SIGNAL = 1


def die_with_parent() -> None:
    """Asks the kernel to end this process when the one that started it ends."""
    ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def main() -> int:
    """Quantizes as the object on standard input says."""
    die_with_parent()
    job = json.load(sys.stdin)
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = job["file_type"]
    parameters.nthread = len(os.sched_getaffinity(0))
    kept: list[Any] = []  # what the parameters point to
    if job["importance"]:
        with np.load(job["importance"]) as matrix:
            kept = [(name.encode(), np.ascontiguousarray(matrix[name], np.float32)) for name in matrix]
        parameters.imatrix = _entries(llama_cpp, kept)
    return int(llama_cpp.llama_model_quantize(job["source"].encode(), job["target"].encode(), ctypes.byref(parameters)))


def _entries(library: Any, matrix: list[tuple[bytes, Any]]) -> Any:
    """llama.cpp's list of tensors, which ends with an empty entry."""
    entries = (library.llama_model_imatrix_data * (len(matrix) + 1))()
    for entry, (name, values) in zip(entries, matrix, strict=False):
        entry.name = name
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = values.size
    return entries


if __name__ == "__main__":
    sys.exit(main())
