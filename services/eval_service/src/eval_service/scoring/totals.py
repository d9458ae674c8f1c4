"""The total that decides between checkpoints: weighted scores, each brought to 0 to 1."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from eval_service.scoring.measurements import Floats, Measurement


def _certainty(perplexities: Floats) -> Floats:
    """1 at perplexity 1, 0.5 at e, towards 0 above: one over one plus the mean loss."""
    found: Floats = 1 / (1 + np.log(np.maximum(perplexities, 1.0)))
    return found


def _clipped(values: Floats) -> Floats:
    return np.clip(values, 0.0, 1.0)


FORMS: dict[str, Callable[[Floats], Floats]] = {"perplexity": _certainty}


@dataclass(frozen=True, slots=True)
class Card:
    """The measurements of one checkpoint by name; step 0 is the base model."""

    step: int
    measurements: Mapping[str, Measurement]
    base_model: bool = False

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return max((len(found.parts) for found in self.measurements.values()), default=0)

    def sums(self) -> dict[str, Floats]:
        """Of each measurement the sums over all samples."""
        return {name: found.parts.sum(axis=0) for name, found in self.measurements.items()}


def least_counted(shares: Mapping[str, float], *cards: Card) -> int:
    """On how many samples the weighed score of cards is computed that is computed on the fewest."""
    return min(card.measurements[name].counted for card in cards for name in shares)


def total(card: Card, sums: Mapping[str, Floats], shares: Mapping[str, float]) -> Floats:
    """The weighted total of sums (..., parts) of a card's measurements, 0 to 1.

    A score that is undefined there (nothing was counted) counts as 0.
    """
    whole = np.zeros(())
    for name, share in shares.items():
        values = card.measurements[name].of(sums[name])
        form = FORMS.get(name, _clipped)
        whole = whole + share * np.nan_to_num(form(values), nan=0.0)
    return np.asarray(whole)
