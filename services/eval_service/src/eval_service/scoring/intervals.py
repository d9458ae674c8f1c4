"""How far a score can be trusted: 95 % confidence intervals over samples."""

from collections.abc import Callable, Iterator

import numpy as np

from eval_service.scoring.measurements import Bounds, Floats, Measurement

RESAMPLES = 2000
CONFIDENCE = 0.95
BLOCK = 1 << 22  # entries of a matrix of choices that exist at once
STEPS = 60  # halvings; more change nothing in a double
ROUNDING = 1e-9  # sums of the same numbers in another order differ by so little


def interval(measurement: Measurement, seed: int) -> tuple[float, float]:
    """Lower and upper end: exact where every sample is right or wrong, else by the bootstrap.

    The exact one is that of Clopper and Pearson (doi:10.1093/biomet/26.4.404), the other takes percentiles of the
    score of samples drawn with replacement (Efron, doi:10.1214/aos/1176344552), which of samples that are all alike
    are no interval: see `wide_enough`.
    """
    if not measurement.counted:
        return float("nan"), float("nan")
    if _is_proportion(measurement):
        right, counted = measurement.parts.sum(axis=0)
        return clopper_pearson(int(right), int(counted))
    values = np.concatenate([measurement.of(choice @ measurement.parts) for choice in resamples(measurement, seed)])
    return wide_enough(values, measurement.counted, measurement.bounds)


def wide_enough(values: Floats, counted: int, bounds: Bounds = (0.0, 1.0)) -> tuple[float, float]:
    """The interval of values of resamples; where they are all the same, one that allows for samples unlike those seen.

    Of so many samples none is unlike the others with a chance of 2.5 % when a share q = 1 - 0.025^(1/counted) of all
    samples is, which is the bound of Clopper and Pearson. The interval goes as far as if that share had the least or
    the highest value within bounds. NaN when there is no such value.
    """
    low, high = map(float, np.nanquantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]))
    if high - low > ROUNDING:
        return low, high
    if not np.isfinite(bounds).all():
        return float("nan"), float("nan")
    _, unlike = clopper_pearson(0, counted)
    least, most = bounds
    return low + unlike * (least - low), high + unlike * (most - high)


def resamples(measurement: Measurement, seed: int) -> Iterator[Floats]:
    """How often each sample is drawn, (resamples, samples) in blocks; the same for every score of equal length."""
    samples = len(measurement.parts)
    random = np.random.default_rng(seed)
    block = max(1, BLOCK // samples)
    for first in range(0, RESAMPLES, block):
        size = min(block, RESAMPLES - first)
        yield random.multinomial(samples, np.full(samples, 1 / samples), size=size).astype(np.float64)


def clopper_pearson(right: int, counted: int) -> tuple[float, float]:
    """The exact interval of a proportion."""
    tail = (1 - CONFIDENCE) / 2
    low = 0.0 if right == 0 else _solve(lambda chance: _at_least(right, counted, chance) < tail)
    high = 1.0 if right == counted else _solve(lambda chance: 1 - _at_least(right + 1, counted, chance) > tail)
    return low, high


def _is_proportion(measurement: Measurement) -> bool:
    if measurement.parts.shape[1] != 2:
        return False
    values, counts = measurement.parts.T
    return bool(((values == 0) | (values == 1)).all() and (counts <= 1).all())


def _solve(is_below: Callable[[float], bool]) -> float:
    """The chance at which a condition that holds below it ends."""
    low, high = 0.0, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return (low + high) / 2


def _at_least(wanted: int, counted: int, chance: float) -> float:
    """Probability of so many of a binomial distribution, or more."""
    if not 0 < chance < 1:
        return float(wanted <= 0 or chance >= 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, counted + 1)))])
    k = np.arange(counted + 1)
    terms = logs[counted] - logs - logs[::-1] + k * np.log(chance) + (counted - k) * np.log1p(-chance)
    return float(min(1.0, np.exp(terms[wanted:]).sum()))
