"""A score as sums over samples, so that it can be computed of any choice of them at once.

Every score here is a function of sums of per-sample parts: a mean of two sums, perplexity of two, F1 of three for each
class. A bootstrap and a permutation test are then products of matrices.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bounds = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Measurement:
    """A score of one checkpoint. parts are (samples, parts); of maps sums of them (..., parts) to values (...).

    counted is the number of samples that the score is computed on; bounds are the least and the highest value it can
    have.
    """

    name: str
    parts: Floats
    of: Callable[[Floats], Floats]
    counted: int
    bounds: Bounds = (0.0, 1.0)

    @property
    def value(self) -> float:
        """The score over all samples; NaN when there are none."""
        return float(self.of(self.parts.sum(axis=0)))


def mean(name: str, values: Sequence[float], bounds: Bounds = (0.0, 1.0)) -> Measurement:
    """The mean of a number that each sample has; samples where it is NaN don't count."""
    found = np.asarray(values, dtype=np.float64)
    counts = ~np.isnan(found)
    parts = np.stack([np.where(counts, found, 0.0), counts], axis=1)
    return Measurement(name, parts, _ratio, int(counts.sum()), bounds)


def perplexity(name: str, losses: Sequence[float], tokens: Sequence[int]) -> Measurement:
    """exp of the sum of losses (in nats) over the number of tokens that have one."""
    counts = np.asarray(tokens, dtype=np.float64)
    parts = np.stack([np.asarray(losses, dtype=np.float64), counts], axis=1)
    counted = int((counts > 0).sum())
    return Measurement(name, parts, lambda sums: np.exp(_ratio(sums)), counted, (1.0, math.inf))


def macro_f1(name: str, actual: Sequence[int], told: Sequence[int], classes: int) -> Measurement:
    """F1 of each class, averaged over the classes that occur in the truth or in the answers."""
    is_actual, is_told = (np.eye(classes)[np.asarray(part, dtype=np.int64)] for part in (actual, told))
    parts = np.concatenate([is_actual, is_told, is_actual * is_told], axis=1)

    def of(sums: Floats) -> Floats:
        truth, answers, right = np.split(sums, 3, axis=-1)
        either = truth + answers
        scores = 2 * right / np.maximum(either, 1)
        mean_score: Floats = scores.sum(axis=-1) / np.maximum((either > 0).sum(axis=-1), 1)
        return mean_score

    return Measurement(name, parts, of, len(actual))


def _ratio(sums: Floats) -> Floats:
    """The first sum over the second; NaN where nothing was counted."""
    with np.errstate(invalid="ignore"):
        found: Floats = sums[..., 0] / np.where(sums[..., 1] > 0, sums[..., 1], np.nan)
    return found
