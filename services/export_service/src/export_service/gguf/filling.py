"""Fills GGUF files from a model in blocks of rows, so that what is in memory does not depend on the model."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

from gguf import GGMLQuantizationType
from threadpoolctl import threadpool_limits

from export_service.gguf.container import Container
from export_service.gguf.errors import GgufNotPossible, not_possible
from export_service.gguf.quantizer import encode
from export_service.gguf.tensors import PlannedTensor
from modelkit.adapters import Factors

BLOCK_ELEMENTS = 1 << 18
THREADS = max(1, min(4, os.cpu_count() or 1))

Files = Sequence[tuple[dict[str, GGMLQuantizationType], Container]]
Block = tuple[PlannedTensor, int, int, Factors | None]


def _blocks(tensors: Sequence[PlannedTensor]) -> Iterator[Block]:
    """The model in blocks of rows of about a megabyte."""
    for tensor in tensors:
        factors, rows = tensor.factors(), tensor.shape[0]
        step = max(1, BLOCK_ELEMENTS // max(1, math.prod(tensor.shape[1:])))
        step = -(-step // tensor.unit) * tensor.unit
        for first in range(0, rows, step):
            yield tensor, first, min(first + step, rows), factors


def fill(tensors: Sequence[PlannedTensor], files: Files, wrote: Callable[[int], None]) -> None:
    """Makes each block once and writes it to every file, in a few threads; the first error ends all of them.

    wrote hears the number of values after each block, in one thread or another. Raises GgufNotPossible or OSError.
    """
    blocks, lock, ending = _blocks(tensors), Lock(), False

    def work() -> None:
        nonlocal ending
        while not ending:
            with lock:
                block = next(blocks, None)
            if block is None:
                return
            try:
                wrote(_write_block(block, files))
            except BaseException:
                ending = True
                raise

    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(THREADS) as pool:
        for future in [pool.submit(work) for _ in range(THREADS)]:
            future.result()


def _write_block(block: Block, files: Files) -> int:
    tensor, first, last, factors = block
    rows = tensor.rows(first, last, factors)
    for types, file in files:
        try:
            file.write(tensor.name, first, encode(rows, types[tensor.name]))
        except GgufNotPossible as error:
            raise not_possible(f"{tensor.name}: {error}", "quantizations") from error
    return int(rows.size)
