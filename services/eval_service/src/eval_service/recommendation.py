"""Which checkpoint to take: the best, or the earliest of those that can't be told apart from it.

Checkpoints are compared on the same samples. The test of a difference exchanges the two checkpoints' results sample by
sample (a paired permutation test, also called approximate randomization, Noreen 1989), which is exact however few
samples there are; several comparisons share one error rate by Holm's method (Holm, 1979).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from eval_service.scoring.intervals import BLOCK, resamples, wide_enough
from eval_service.scoring.measurements import Floats
from eval_service.scoring.totals import Card, least_counted, total
from eval_service.wording import Wording, words_of

ERROR_RATE = 0.05
EXCHANGES = 9999
ROUNDING = 1e-12
EXACT_SAMPLES = 13  # up to here every exchange is looked at


@dataclass(frozen=True, slots=True)
class Comparison:
    """A checkpoint's total less another's (step 0: the base model), with its 95 % interval and its chance.

    adjusted is the chance of so large a difference among equals, raised for the number of comparisons.
    """

    step: int
    against: int
    difference: float
    low: float
    high: float
    chance: float
    adjusted: float

    @property
    def significant(self) -> bool:
        """More than chance explains."""
        return self.adjusted < ERROR_RATE


@dataclass(frozen=True, slots=True)
class Recommendation:
    """step is 0 when none is advised; equivalent_steps can't be told apart from the best, worse_than_base_steps are
    worse than the base model beyond chance."""

    step: int
    distinguishable: bool
    equivalent_steps: tuple[int, ...] = ()
    worse_than_base_steps: tuple[int, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    words: Wording = field(default_factory=lambda: Wording("", ""))


def recommend(
    cards: Sequence[Card], shares: Mapping[str, float], *, seed: int = 0, between: Callable[[], None] = lambda: None
) -> Recommendation:
    """What to take of cards over the same samples, by their totals; between is called all along."""
    trained = [card for card in cards if not card.base_model]
    base = next((card for card in cards if card.base_model), None)
    if not trained or not shares:
        return Recommendation(0, distinguishable=False, words=words_of("nothing"))
    to_base = _compare([(card, base) for card in trained], shares, seed, between, one_sided=True) if base else []
    worse = [item.step for item in to_base if item.significant and item.difference < 0]
    eligible = [card for card in trained if card.step not in worse]
    if not eligible:
        return Recommendation(
            0,
            distinguishable=False,
            worse_than_base_steps=tuple(worse),
            comparisons=tuple(to_base),
            words=words_of("all_worse", worse=worse),
        )
    best = max(eligible, key=lambda card: (float(total(card, card.sums(), shares)), -card.step))
    to_others = _compare([(best, card) for card in eligible if card is not best], shares, seed, between)
    equivalent = sorted(item.against for item in to_others if not item.significant)
    step = min([best.step, *equivalent])
    over_base = next((item.significant for item in to_base if item.step == step and item.difference > 0), False)
    return Recommendation(
        step,
        distinguishable=not equivalent,
        equivalent_steps=tuple(equivalent),
        worse_than_base_steps=tuple(worse),
        comparisons=(*to_others, *to_base),
        words=words_of(
            "apart" if not equivalent and to_others else "alike" if equivalent else "only",
            step=step,
            best=best.step,
            equivalent=equivalent,
            worse=worse,
            base=None if base is None else over_base,
            behind=_behind(to_others),
        ),
    )


def _behind(comparisons: Sequence[Comparison]) -> tuple[int, float]:
    """The second best checkpoint by comparisons of the best, and how much lower its total is."""
    return min(((item.against, item.difference) for item in comparisons), key=lambda item: item[1], default=(0, 0.0))


def _compare(
    pairs: Sequence[tuple[Card, Card]],
    shares: Mapping[str, float],
    seed: int,
    between: Callable[[], None],
    *,
    one_sided: bool = False,
) -> list[Comparison]:
    """Each first card with its second. one_sided asks only whether the difference goes the way it goes."""
    found = [_difference(first, second, shares, seed, between, one_sided=one_sided) for first, second in pairs]
    adjusted = holm([item[3] for item in found])
    return [
        Comparison(first.step, second.step, difference, low, high, chance, raised)
        for (first, second), (difference, low, high, chance), raised in zip(pairs, found, adjusted, strict=True)
    ]


def holm(chances: Sequence[float]) -> list[float]:
    """Chances raised so that all comparisons together have the error rate of one."""
    adjusted = [0.0] * len(chances)
    least = 0.0
    for rank, place in enumerate(sorted(range(len(chances)), key=lambda index: chances[index])):
        least = max(least, min(1.0, (len(chances) - rank) * chances[place]))
        adjusted[place] = least
    return adjusted


def _difference(
    first: Card, second: Card, shares: Mapping[str, float], seed: int, between: Callable[[], None], *, one_sided: bool
) -> tuple[float, float, float, float]:
    """Difference of totals, its interval (paired bootstrap), and its chance (paired permutation)."""
    seen = float(total(first, first.sums(), shares) - total(second, second.sums(), shares))
    drawn = []
    for choice in resamples(next(iter(first.measurements.values())), seed):
        between()
        totals = [
            total(card, {name: choice @ card.measurements[name].parts for name in shares}, shares)
            for card in (first, second)
        ]
        drawn.append(totals[0] - totals[1])
    low, high = wide_enough(np.concatenate(drawn), least_counted(shares, first, second), (-1.0, 1.0))
    exchanged = _exchanged(first, second, shares, seed, between)
    sizes = exchanged * np.sign(seen) if one_sided else np.abs(exchanged)
    extreme = sizes >= abs(seen) - ROUNDING
    if first.samples <= EXACT_SAMPLES:
        chance = float(extreme.mean())
    else:
        chance = float((1 + extreme.sum()) / (1 + len(extreme)))
    return seen, low, high, chance


def _exchanged(
    first: Card, second: Card, shares: Mapping[str, float], seed: int, between: Callable[[], None]
) -> Floats:
    """Differences of totals where the two have exchanged their results of some samples."""
    samples = first.samples
    found = []
    for swap in swaps(samples, seed):
        between()
        sums: list[dict[str, Floats]] = [{}, {}]
        for name in shares:
            one, other = first.measurements[name].parts, second.measurements[name].parts
            moved = swap @ (other - one)
            sums[0][name], sums[1][name] = one.sum(axis=0) + moved, other.sum(axis=0) - moved
        found.append(total(first, sums[0], shares) - total(second, sums[1], shares))
    return np.concatenate(found)


def swaps(samples: int, seed: int) -> Iterator[Floats]:
    """Which samples are exchanged, (exchanges, samples) in blocks: all ways of a few, else some by chance."""
    if samples <= EXACT_SAMPLES:
        yield (np.arange(1 << samples)[:, None] >> np.arange(samples) & 1).astype(np.float64)
        return
    random = np.random.default_rng(seed)
    block = max(1, BLOCK // samples)
    for first in range(0, EXCHANGES, block):
        yield random.integers(0, 2, (min(block, EXCHANGES - first), samples)).astype(np.float64)
