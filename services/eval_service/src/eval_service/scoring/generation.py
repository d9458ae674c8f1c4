"""Answers to many prompts at once, in batches of prompts of like length.

What chance does depends on the seed and the sample alone, so that neither batches nor checkpoints change it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from eval_service.generation.engine.sampling import Sampling
from eval_service.scoring.decoding import empty_cache, use_cached_attention
from modelkit.forwarding import takes_columns

ROWS = {"cpu": 32, "cuda": 128}
BATCH_TOKENS = {"cpu": 1 << 15, "cuda": 1 << 18}  # of prompts and answers together
SHRINK = 0.75  # finished rows leave when no more than so many of a batch are left
Between = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Writing:
    """How answers are written: at most max_tokens each, up to one of the tokens in ends.

    Each ends too where it and its prompt fill the context, in tokens; None for a model without a limit.
    """

    sampling: Sampling
    max_tokens: int
    ends: frozenset[int]
    context: int | None = None

    def room(self, prompt: Sequence[int]) -> int:
        """Tokens that the answer to a prompt can have."""
        return self.max_tokens if self.context is None else max(1, min(self.max_tokens, self.context - len(prompt)))


def write_answers(
    model: Any, prompts: Sequence[Sequence[int]], writing: Writing, between: Between = lambda: None
) -> list[list[int]]:
    """The tokens of an answer to each prompt, the end token left out. between is called before each forward pass."""
    use_cached_attention(model)
    device = next(model.parameters()).device.type
    answers: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda place: -len(prompts[place]))
    while order:
        longest = len(prompts[order[0]]) + writing.max_tokens
        count = max(1, min(ROWS.get(device, ROWS["cpu"]), BATCH_TOKENS.get(device, BATCH_TOKENS["cpu"]) // longest))
        places, order = order[:count], order[count:]
        with torch.inference_mode():
            batch = _Batch(model, [prompts[place] for place in places], places, writing)
            while batch.alive:
                between()
                batch.step()
        for place, tokens in zip(places, batch.answers, strict=True):
            answers[place] = tokens
    return answers


class _Batch:
    """Prompts padded on the left, and the answers to them so far."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], places: Sequence[int], writing: Writing) -> None:
        self._model, self._writing = model, writing
        self._device = next(model.parameters()).device
        width = max(map(len, prompts))
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
            mask[row, width - len(prompt) :] = 1
        self._unread, self._mask = ids.to(self._device), mask.to(self._device)
        self._positions = (self._mask.cumsum(1) - 1).clamp(min=0)
        self._cache = empty_cache(model)
        self._options = {"logits_to_keep": 1} if takes_columns(model) else {}
        self._chooser = _Chooser(writing, prompts, places, self._device)
        self.answers: list[list[int]] = [[] for _ in prompts]
        self._rooms = [writing.room(prompt) for prompt in prompts]
        self._rows = list(range(len(prompts)))

    @property
    def alive(self) -> bool:
        """Some answer is not finished."""
        return bool(self._rows)

    def step(self) -> None:
        """Writes one token of each answer."""
        output = self._model(
            input_ids=self._unread,
            attention_mask=self._mask,
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
            **self._options,
        )
        tokens = self._chooser.choose(output.logits[:, -1].float())
        finished = []
        for place, (row, token) in enumerate(zip(self._rows, tokens.tolist(), strict=True)):
            if row < 0:
                continue
            if token not in self._writing.ends:
                self.answers[row].append(token)
            if token in self._writing.ends or len(self.answers[row]) >= self._rooms[row]:
                finished.append(place)
        self._go_on(tokens, finished)

    def _go_on(self, tokens: torch.Tensor, finished: Sequence[int]) -> None:
        for place in finished:
            self._rows[place] = -1
        left = [place for place, row in enumerate(self._rows) if row >= 0]
        self._unread = tokens[:, None]
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._rows), 1)], dim=1)
        self._positions = self._positions[:, -1:] + 1
        if self._writing.context is not None:  # rows that are finished may stay for a while
            self._positions = self._positions.clamp(max=self._writing.context - 1)
        if not left:
            self._rows = []
        elif len(left) <= SHRINK * len(self._rows):
            chosen = torch.tensor(left, device=self._device)
            self._cache.batch_select_indices(chosen)
            self._unread, self._mask, self._positions = (
                tensor[chosen] for tensor in (self._unread, self._mask, self._positions)
            )
            self._chooser.keep(chosen)
            self._rows = [self._rows[place] for place in left]


class _Chooser:
    """The next token of each row, as eval_service.generation chooses one, but with chances drawn beforehand."""

    def __init__(
        self,
        writing: Writing,
        prompts: Sequence[Sequence[int]],
        places: Sequence[int],
        device: torch.device,
    ) -> None:
        self._sampling = writing.sampling
        draws = [np.random.default_rng((writing.sampling.seed, place)).random(writing.max_tokens) for place in places]
        self._draws = torch.tensor(np.stack(draws), dtype=torch.float32, device=device)
        self._step = 0
        # The tokens of each row so far, the shorter prompts filled up with a token of their own.
        self._width = max(map(len, prompts))
        filled = [[*prompt, *[prompt[-1]] * (self._width - len(prompt))] for prompt in prompts]
        self._tokens = torch.zeros(len(prompts), self._width + writing.max_tokens, dtype=torch.long, device=device)
        self._tokens[:, : self._width] = torch.tensor(filled, device=device)

    def keep(self, rows: torch.Tensor) -> None:
        """Goes on with these rows alone."""
        self._draws, self._tokens = self._draws[rows], self._tokens[rows]

    def choose(self, scores: torch.Tensor) -> torch.Tensor:
        """Tokens (rows,) by scores (rows, vocabulary), which it changes; where these are no numbers, the first."""
        self._penalise(scores)
        torch.nan_to_num_(scores, nan=-torch.inf)
        if self._sampling.temperature == 0:
            tokens = scores.argmax(dim=-1)
        else:
            chances, candidates = self._candidates(scores)
            ladder = torch.nan_to_num(chances).cumsum(dim=-1)
            height = self._draws[:, self._step, None] * ladder[:, -1:]
            places = (ladder <= height).sum(dim=-1, keepdim=True).clamp(max=ladder.shape[1] - 1)
            tokens = candidates.gather(1, places)[:, 0]
        self._tokens[:, self._width + self._step] = tokens
        self._step += 1
        return tokens

    def _penalise(self, scores: torch.Tensor) -> None:
        """Changes the scores of tokens that are there alone; of one that is there twice it writes the same twice."""
        penalty, presence = self._sampling.repetition_penalty, self._sampling.presence_penalty
        end = self._width + self._step
        if penalty != 1:
            seen = self._tokens[:, :end]
            found = scores.gather(1, seen)
            scores.scatter_(1, seen, torch.where(found < 0, found * penalty, found / penalty))
        if presence and self._step:
            said = self._tokens[:, self._width : end]
            scores.scatter_(1, said, scores.gather(1, said) - presence)

    def _candidates(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Chances of the likeliest tokens, the likeliest first, 0 for what is left out; and the tokens."""
        sampling, known = self._sampling, scores.shape[-1]
        scores, tokens = scores.topk(min(sampling.top_k or known, known), dim=-1)
        chances = (scores / sampling.temperature).softmax(dim=-1)
        kept = (chances.cumsum(dim=-1) - chances < sampling.top_p) & (chances >= sampling.min_p * chances[:, :1])
        kept[:, 0] = True
        return torch.where(kept, chances, 0), tokens
