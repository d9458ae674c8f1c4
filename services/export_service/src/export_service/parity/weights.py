"""Weights of a GGUF file, against those that the model and its adapter have together."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, ReaderTensor
from gguf.quants import dequantize

from export_service.gguf.tensors import PlannedTensor, outline_of, planned_tensors
from export_service.parity.checks import WEIGHT_LIMITS
from export_service.parity.llama import GgufUnreadable
from modelkit.adapters import Adapter
from modelkit.errors import Problem
from modelkit.merging import MergePlan

ROWS = 64  # of each tensor, in four places


def worst_weights(
    base: Path, adapter: Path | None, file: Path, tick: Callable[[], None] = lambda: None
) -> tuple[str, float]:
    """The tensor that is furthest off, and its share of what is allowed for its type; infinite for one that is missing.

    tick is called for each tensor and may raise to end it. Raises GgufUnreadable for a damaged file, InvalidModel,
    InvalidAdapter, GgufNotPossible or OSError.
    """
    opened = Adapter(adapter) if adapter else None
    try:
        with MergePlan(base, opened) as plan:
            expected = planned_tensors(plan, outline_of(base, plan))
            stored = _read(file)
            return max(_shares(expected, stored, tick), key=lambda found: found[1])
    finally:
        if opened:
            opened.close()


def _read(file: Path) -> dict[str, ReaderTensor]:
    try:
        return {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    except (ValueError, KeyError, IndexError, OverflowError) as error:
        raise GgufUnreadable(Problem("", f"{file.name} is damaged: {error}")) from error


def _shares(
    expected: list[PlannedTensor], stored: dict[str, ReaderTensor], tick: Callable[[], None]
) -> Iterator[tuple[str, float]]:
    for name in stored.keys() ^ {tensor.name for tensor in expected}:
        yield name, float("inf")
    for tensor in expected:
        tick()
        found = stored.get(tensor.name)
        if found is None:
            continue
        if tuple(map(int, reversed(found.shape))) != tensor.shape:
            yield tensor.name, float("inf")
            continue
        limit = WEIGHT_LIMITS.get(found.tensor_type.name, 0.0)
        yield tensor.name, _error(tensor, found) / limit if limit else float("inf")


def _error(tensor: PlannedTensor, found: ReaderTensor) -> float:
    """Root mean square of the difference over that of the weights."""
    factors, total, wrong = tensor.factors(), 0.0, 0.0
    for first, last in _places(tensor):
        wanted = tensor.rows(first, last, factors).astype(np.float64)
        data: Any = found.data[first:last]
        got = dequantize(data, found.tensor_type).reshape(wanted.shape)
        wrong += float(np.square(got - wanted).sum())
        total += float(np.square(wanted).sum())
    return float(np.sqrt(wrong / total)) if total else float(wrong > 0)


def _places(tensor: PlannedTensor) -> Iterator[tuple[int, int]]:
    """Ranges of rows from beginning to end; all of a small tensor."""
    rows = tensor.shape[0]
    if len(tensor.shape) < 2 or rows <= ROWS:
        yield 0, rows
        return
    length = -(-ROWS // 4 // tensor.unit) * tensor.unit
    starts = np.linspace(0, max(rows - length, 0), 4).astype(int) // tensor.unit * tensor.unit
    for start in sorted(set(starts.tolist())):
        yield start, min(start + length, rows)
