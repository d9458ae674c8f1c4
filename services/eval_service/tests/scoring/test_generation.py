"""Many answers at once are those that a model writes one by one."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from eval_service.generation.engine.sampling import Sampler, Sampling
from eval_service.scoring.decoding import ROOM
from eval_service.scoring.generation import Writing, write_answers
from modelkit import scratch
from modelkit.loading import load_model

PROMPTS = [[5, 9, 30, 41], [7] * 12, [300, 12, 8], [4, 4, 90, 91, 92, 93, 94], [17]]
GREEDY = Sampling(temperature=0.0, repetition_penalty=1.0)


@pytest.fixture(scope="module", params=["llama", "gemma"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("generation") / request.param
    corpus = [Path(json.__file__).read_text()]
    built = scratch.build(folder, family=request.param, hidden_size=32, layers=2, vocab_size=320, corpus=corpus)
    loaded: Any = load_model(built.directory, dtype=torch.float32)
    return loaded.eval()


def one_by_one(model: Any, prompts: Sequence[Sequence[int]], length: int) -> list[list[int]]:
    """The likeliest tokens, without a cache and without padding."""
    answers = []
    for prompt in prompts:
        tokens = list(prompt)
        for _ in range(length):
            with torch.no_grad():
                tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
        answers.append(tokens[len(prompt) :])
    return answers


def test_batches_write_what_is_written_one_by_one(model: Any) -> None:
    expected = one_by_one(model, PROMPTS, 12)
    assert write_answers(model, PROMPTS, Writing(GREEDY, 12, frozenset())) == expected
    ends = frozenset({expected[0][3], expected[2][5]})
    cut = [next((row[:at] for at, token in enumerate(row) if token in ends), row) for row in expected]
    assert write_answers(model, PROMPTS, Writing(GREEDY, 12, ends)) == cut


def test_answers_that_outgrow_their_cache_stay_the_same(model: Any) -> None:
    length = 2 * ROOM + 3
    expected = one_by_one(model, PROMPTS[:3], length)
    assert write_answers(model, PROMPTS[:3], Writing(GREEDY, length, frozenset())) == expected
    ends = frozenset({expected[0][5], expected[1][ROOM + 20]})
    cut = [next((row[:at] for at, token in enumerate(row) if token in ends), row) for row in expected]
    assert write_answers(model, PROMPTS[:3], Writing(GREEDY, length, ends)) == cut


def test_a_long_prompt_shortens_no_other_answer(model: Any) -> None:
    longest = max(map(len, PROMPTS))
    written = write_answers(model, PROMPTS, Writing(GREEDY, 12, frozenset(), context=longest + 3))
    rooms = [min(12, longest + 3 - len(prompt)) for prompt in PROMPTS]
    assert len(set(rooms)) > 1
    assert written == [row[:room] for row, room in zip(one_by_one(model, PROMPTS, 12), rooms, strict=True)]


def test_positions_that_are_learnt_end_with_the_context() -> None:
    """A row that is finished stays in its batch for a while."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    learnt: Any = GPT2LMHeadModel(config).eval()
    prompts = [[5] * 28, *([row, 2, 3] for row in range(7))]
    written = write_answers(learnt, prompts, Writing(GREEDY, 16, frozenset(), context=32))
    assert [len(answer) for answer in written] == [4] + [16] * 7
    assert written[1:] == one_by_one(learnt, prompts[1:], 16)


def test_penalties_are_those_of_a_whole_vocabulary(model: Any) -> None:
    sampling = Sampling(temperature=0.0, repetition_penalty=1.3, presence_penalty=0.5)
    expected = []
    for prompt in PROMPTS:
        sampler, tokens = Sampler(sampling, prompt, model.config.vocab_size), list(prompt)
        for _ in range(12):
            with torch.no_grad():
                tokens.append(sampler.choose(model(input_ids=torch.tensor([tokens])).logits[0, -1].float()))
        expected.append(tokens[len(prompt) :])
    assert write_answers(model, PROMPTS, Writing(sampling, 12, frozenset())) == expected


def test_chance_depends_on_seed_and_sample_alone(model: Any) -> None:
    writing = Writing(Sampling(temperature=1.0, top_k=20, top_p=0.9, seed=1), 10, frozenset())
    together = write_answers(model, PROMPTS, writing)
    assert together == write_answers(model, PROMPTS, writing)
    assert together[0] == write_answers(model, PROMPTS[:1], writing)[0]
    other = Writing(Sampling(temperature=1.0, top_k=20, top_p=0.9, seed=2), 10, frozenset())
    assert together != write_answers(model, PROMPTS, other)


def test_a_penalty_keeps_from_repeating(model: Any) -> None:
    strict = Writing(Sampling(temperature=0.0, repetition_penalty=1.0, presence_penalty=2.0), 16, frozenset())
    plain = write_answers(model, PROMPTS, Writing(GREEDY, 16, frozenset()))
    spread = write_answers(model, PROMPTS, strict)
    assert sum(len(set(row)) for row in spread) > sum(len(set(row)) for row in plain)


def test_each_forward_pass_may_be_the_last(model: Any) -> None:
    class Enough(Exception):
        pass

    calls = []

    def between() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise Enough

    with pytest.raises(Enough):
        write_answers(model, PROMPTS, Writing(GREEDY, 50, frozenset()), between)
