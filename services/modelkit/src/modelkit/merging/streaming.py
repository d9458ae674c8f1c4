"""Writes a merged model file by file: bytes that stay are copied as they are, what changes is summed in blocks of rows.

Sums are taken in float64 and rounded to the type that the base model is stored in. A block is a few megabytes, so
what is in memory depends neither on the model nor on its largest tensor, but for an adapter's own matrices.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
import orjson
from threadpoolctl import threadpool_limits

from modelkit.adapters import Adapter, Factors
from modelkit.disk import flushing, sync, sync_all
from modelkit.errors import InvalidAdapter, Problem
from modelkit.inspection import INDEX
from modelkit.merging.carrying import carry
from modelkit.merging.plan import MergedTensor, MergePlan
from modelkit.number_formats import from_float32, is_finite

BLOCK_ELEMENTS = 1 << 17
COPY_BYTES, PIECE_BYTES = 32 << 20, 1 << 20
# File systems of different kinds, and some that are not local, do not copy within the kernel.
NO_COPY_RANGE = frozenset({errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM})
THREADS = max(1, min(4, os.cpu_count() or 1))
READABLE = 0o644

Progress = Callable[[float], None]


class MergeStopped(Exception):
    """Somebody asked for an end; nothing is left."""


@dataclass(frozen=True, slots=True)
class _Block:
    """Some rows of a tensor, and where they go."""

    tensor: MergedTensor
    factors: Factors | None
    first: int
    last: int
    position: int


@dataclass(frozen=True, slots=True)
class _Copy:
    """Some stored bytes, and where they go."""

    descriptor: int
    begin: int
    position: int
    size: int


def merge(
    base: Path,
    adapter: Path | None,
    target: Path,
    *,
    progress: Progress = lambda _: None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> MergePlan:
    """Writes the base model in one directory with the adapter in another to a third, which must not exist.

    Without an adapter it is a copy of the model's own files. Configuration, tokenizer and chat template go with it.
    progress hears the share that is done, from 0 to 1; is_stopped is asked between blocks. Raises InvalidModel,
    InvalidAdapter, OSError or MergeStopped; nothing is left under the target's name then. The plan that is returned
    tells what was written; it is closed.
    """
    staging = target.parent / f".{target.name}.tmp"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        with ExitStack() as stack:
            opened = stack.enter_context(Adapter(adapter)) if adapter else None
            plan = stack.enter_context(MergePlan(base, opened))
            write_weights(plan, staging, progress=progress, is_stopped=is_stopped)
            carry(plan, staging)
        sync_all(staging)
        staging.rename(target)
        sync(target.parent)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return plan


def write_weights(
    plan: MergePlan,
    target: Path,
    *,
    progress: Progress = lambda _: None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Writes the weights of a merged model, and their index, to a directory. Raises OSError or MergeStopped."""
    written, total = 0, max(plan.size, 1)

    def wrote(size: int) -> None:
        nonlocal written
        written += size
        progress(written / total)

    for shard, tensors in plan.shards.items():
        _write_shard(target / shard, tensors, wrote, is_stopped)
    if plan.is_indexed:
        index = {tensor.name: shard for shard, tensors in plan.shards.items() for tensor in tensors}
        content = {"metadata": {"total_size": plan.size}, "weight_map": dict(sorted(index.items()))}
        (target / INDEX).write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))


def _write_shard(
    path: Path, tensors: list[MergedTensor], wrote: Callable[[int], None], is_stopped: Callable[[], bool]
) -> None:
    header = _header(tensors)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, READABLE)
    try:
        size = sum(tensor.size for tensor in tensors)
        os.posix_fallocate(descriptor, 0, len(header) + size)
        os.pwrite(descriptor, header, 0)
        with flushing(descriptor):
            _work(_jobs(tensors, len(header)), descriptor, wrote, is_stopped)
    finally:
        os.close(descriptor)


def _header(tensors: list[MergedTensor]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for tensor in tensors:
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [position, position + tensor.size],
        }
        position += tensor.size
    raw = orjson.dumps(entries)
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def _jobs(tensors: list[MergedTensor], position: int) -> Iterator[_Block | _Copy]:
    """What is to be done for a file, in the order of its bytes."""
    for tensor in tensors:
        if tensor.is_unchanged:
            file, begin = tensor.stored.file, tensor.stored.file.start + tensor.stored.info.begin
            for done in range(0, tensor.size, COPY_BYTES):
                size = min(COPY_BYTES, tensor.size - done)
                yield _Copy(file.descriptor, begin + done, position + done, size)
        else:
            rows = tensor.shape[0] if tensor.shape else 1
            factors, row_bytes = tensor.factors(), tensor.size // max(rows, 1)
            step = max(1, BLOCK_ELEMENTS * rows // max(tensor.stored.info.elements, 1))
            for first in range(0, rows, step):
                yield _Block(tensor, factors, first, min(first + step, rows), position + first * row_bytes)
        position += tensor.size


def _work(
    jobs: Iterator[_Block | _Copy], descriptor: int, wrote: Callable[[int], None], is_stopped: Callable[[], bool]
) -> None:
    """Does all the jobs in a few threads; the first error ends all of them."""
    lock, ending = Lock(), False

    def work() -> None:
        nonlocal ending
        while not ending:
            with lock:
                job = next(jobs, None)
                if is_stopped():
                    raise MergeStopped
            if job is None:
                return
            try:
                size = _copy(job, descriptor) if isinstance(job, _Copy) else _sum(job, descriptor)
            except BaseException:
                ending = True
                raise
            with lock:
                wrote(size)

    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(THREADS) as pool:
        for future in [pool.submit(work) for _ in range(THREADS)]:
            future.result()


def _sum(block: _Block, descriptor: int) -> int:
    tensor = block.tensor
    rows = from_float32(tensor.rows(block.first, block.last, block.factors), tensor.dtype)
    if not is_finite(rows, tensor.dtype):
        message = f"{tensor.name} has values after the merge that {tensor.dtype} cannot hold, or that are no numbers"
        raise InvalidAdapter(Problem("", message))
    view = rows.reshape(-1).view(np.uint8).data
    size, position = len(view), block.position
    while view:
        count = os.pwrite(descriptor, view, position)
        view, position = view[count:], position + count
    return size


def _copy(job: _Copy, descriptor: int) -> int:
    """Within the kernel, which need not even read where file systems share blocks; else through a buffer."""
    done, within_kernel = 0, True
    while done < job.size:
        begin, position, left = job.begin + done, job.position + done, job.size - done
        try:
            count = (_copy_range if within_kernel else _copy_piece)(job.descriptor, descriptor, left, begin, position)
        except OSError as error:
            if not within_kernel or error.errno not in NO_COPY_RANGE:
                raise
            within_kernel = False
            continue
        if count == 0:
            raise OSError("a file of the base model has become shorter while it was read")
        done += count
    return done


def _copy_range(source: int, target: int, size: int, begin: int, position: int) -> int:
    return os.copy_file_range(source, target, size, begin, position)


def _copy_piece(source: int, target: int, size: int, begin: int, position: int) -> int:
    return os.pwrite(target, os.pread(source, min(size, PIECE_BYTES), begin), position)
