"""The choice of the next token from a model's scores, in the order and with the meaning that transformers gives it."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from eval_service.generation.engine.errors import GenerationError

FIRST_SORTED = 1024


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen.

    temperature 0 always takes the likeliest; top_k 0, top_p 1 and min_p 0 leave nothing out; repetition_penalty 1 and
    presence_penalty 0 change nothing. Penalties: arXiv:1909.05858; nucleus: arXiv:1904.09751; min_p: arXiv:2407.01082.
    """

    temperature: float = 0.7
    top_k: int = 50
    top_p: float = 0.9
    min_p: float = 0.0
    repetition_penalty: float = 1.1
    presence_penalty: float = 0.0
    seed: int = 42


class Sampler:
    """Chooses the tokens of one answer; the same seed and the same scores give the same tokens.

    The repetition penalty is on tokens of the prompt too, the presence penalty on generated ones alone.
    """

    def __init__(self, sampling: Sampling, prompt: Iterable[int], vocabulary: int) -> None:
        self._sampling = sampling
        self._random = torch.Generator().manual_seed(sampling.seed)
        self._seen = torch.zeros(vocabulary, dtype=torch.bool)
        self._seen[[token for token in prompt if token < vocabulary]] = True
        self._said = torch.zeros(vocabulary, dtype=torch.bool)

    def choose(self, scores: torch.Tensor) -> int:
        """The next token; scores are (vocabulary,) float32 on the CPU. Raises GenerationError for those that are no
        numbers."""
        scores = self._penalised(scores)
        token = int(scores.argmax()) if self._sampling.temperature == 0 else self._drawn(scores)
        if not bool(torch.isfinite(scores[token])):
            raise GenerationError("the model's output is not a number: its weights are damaged, or training diverged")
        self._seen[token] = self._said[token] = True
        return token

    def _penalised(self, scores: torch.Tensor) -> torch.Tensor:
        penalty, presence = self._sampling.repetition_penalty, self._sampling.presence_penalty
        if penalty != 1:
            worse = torch.where(scores < 0, scores * penalty, scores / penalty)
            scores = torch.where(self._seen, worse, scores)
        return scores - presence * self._said if presence else scores

    def _drawn(self, scores: torch.Tensor) -> int:
        chances, tokens = self._candidates(scores / self._sampling.temperature)
        if not bool(torch.isfinite(chances).all()):
            return int(tokens[0])
        place = int(torch.multinomial(chances, 1, generator=self._random))
        return int(tokens[place])

    def _candidates(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Chances, not normalised, and their tokens; of what is left out the chance is 0. The likeliest stays."""
        sampling = self._sampling
        if sampling.top_k:
            scores, tokens = scores.topk(min(sampling.top_k, len(scores)))
            chances = scores.softmax(0)
        elif sampling.top_p < 1:
            chances, tokens = _likeliest(scores.softmax(0), sampling.top_p)
        else:
            chances = scores.softmax(0)
            return torch.where(chances < sampling.min_p * chances.max(), 0, chances), torch.arange(len(scores))
        kept = (chances.cumsum(0) - chances < sampling.top_p) & (chances >= sampling.min_p * chances[0])
        kept[0] = True
        return torch.where(kept, chances, 0), tokens


def _likeliest(chances: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The likeliest tokens, in order, that have a share of all chances together; large vocabularies are not sorted."""
    found, tokens = chances.topk(min(FIRST_SORTED, len(chances)))
    return (found, tokens) if found.sum() >= share else chances.topk(len(chances))
