"""Tokens are drawn as often as their chances say, and penalties are those of transformers."""

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from eval_service.generation.engine.errors import GenerationError
from eval_service.generation.engine.sampling import Sampler, Sampling

VOCABULARY = 40
PROMPT = [3, 5, 3]
DRAWS = 4000


def scores() -> torch.Tensor:
    return torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(0)) * 2


def expected(sampling: Sampling) -> torch.Tensor:
    """Chances as transformers works them out."""
    steps = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty),
            TemperatureLogitsWarper(sampling.temperature),
            TopKLogitsWarper(sampling.top_k or VOCABULARY),
            TopPLogitsWarper(sampling.top_p),
            MinPLogitsWarper(sampling.min_p),
        ]
    )
    return steps(torch.tensor([PROMPT]), scores()[None]).softmax(-1)[0]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0),
        Sampling(temperature=0.7, top_k=10, top_p=0.9, repetition_penalty=1.3),
        Sampling(temperature=1.5, top_k=0, top_p=0.6, repetition_penalty=1.0),
        Sampling(temperature=1.2, top_k=0, top_p=1.0, min_p=0.1, repetition_penalty=1.1),
        Sampling(temperature=1.2, top_k=20, top_p=0.95, min_p=0.05, repetition_penalty=0.8),
    ],
)
def test_tokens_come_as_often_as_their_chances_say(sampling: Sampling) -> None:
    chances = expected(sampling)
    sampler = Sampler(sampling, PROMPT, VOCABULARY)
    counts = torch.zeros(VOCABULARY)
    for _ in range(DRAWS):
        chances_now, tokens = sampler._candidates(sampler._penalised(scores()) / sampling.temperature)
        counts[tokens[torch.multinomial(chances_now, 1, generator=sampler._random)]] += 1
    assert not counts[chances == 0].any(), "a token was drawn that should be left out"
    assert (counts / DRAWS - chances).abs().max() < 4 * (0.25 / DRAWS) ** 0.5


def test_a_large_vocabulary_is_cut_as_a_small_one() -> None:
    """Only the likeliest tokens are sorted, unless they have too small a share."""
    steep, flat = torch.linspace(30, 0, 5000), torch.linspace(1, 0, 5000)
    for given in (steep, flat):
        sampler = Sampler(Sampling(temperature=1.0, top_k=0, top_p=0.9, repetition_penalty=1.0), [], 5000)
        chances, tokens = sampler._candidates(given)
        kept = torch.zeros(5000)
        kept[tokens] = chances
        wanted = TopPLogitsWarper(0.9)(torch.tensor([[0]]), given[None]).softmax(-1)[0]
        assert torch.equal(kept > 0, wanted > 0)


def test_the_presence_penalty_is_on_what_was_generated_alone() -> None:
    flat = torch.zeros(VOCABULARY)
    flat[5], flat[7] = 1.0, 0.9
    sampler = Sampler(Sampling(temperature=0.0, repetition_penalty=1.0, presence_penalty=0.5), [5], VOCABULARY)
    assert [sampler.choose(flat) for _ in range(3)] == [5, 7, 5]


def test_scores_that_are_no_numbers_are_an_error() -> None:
    for temperature in (0.0, 1.0):
        with pytest.raises(GenerationError, match="not a number"):
            Sampler(Sampling(temperature=temperature), [], VOCABULARY).choose(torch.full((VOCABULARY,), torch.nan))
