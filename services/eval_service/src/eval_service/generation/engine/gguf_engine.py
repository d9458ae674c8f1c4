"""A GGUF model run by llama.cpp: one conversation at a time, the scores sampled as those of any other model."""

from collections.abc import Sequence
from pathlib import Path

import torch

from eval_service.generation.engine.engines import Prompt
from eval_service.generation.engine.llama import LlamaModel
from eval_service.generation.engine.prompts import Prompts, end_tokens, opening_of
from modelkit.datasets import Message
from modelkit.errors import InvalidModel, Problem

CHUNK = 256
LEAD = 8


class _Session:
    """The context's one conversation; whole chunks of the earlier one's prompt that are the same are kept."""

    def __init__(self, engine: "GgufEngine", known: int) -> None:
        self._engine = engine
        self.known = known

    def read(self, tokens: Sequence[int]) -> torch.Tensor:
        return self._engine.forward(tokens)

    def close(self) -> None:
        """What was read stays until the next conversation begins."""


class GgufEngine:
    """Loads a GGUF file. Raises LlamaError."""

    at_once = 1
    chunk = CHUNK

    def __init__(self, path: Path, *, context: int) -> None:
        self._model = model = LlamaModel(path, context=context, batch=CHUNK)
        self.context, self.vocabulary = model.context, model.vocabulary
        first, last = (model.name_of(token) for token in model.bounds)
        named = {"bos_token": first, "eos_token": last}
        self._prompts = Prompts(
            model.meta("tokenizer.chat_template"), {name: text for name, text in named.items() if text}
        )
        self._ends = end_tokens(
            [model.ends()], self._prompts, lambda text: model.tokens_of(text, add_special=False), model.is_special
        )
        self._opening = opening_of(self._prompts, lambda text: model.tokens_of(text, add_special=False), model.text_of)
        self._read: list[int] = []
        self._whole = 0

    def add(self, variant: str, directory: Path) -> int:
        """A GGUF model takes no adapters here. Raises InvalidModel."""
        raise InvalidModel(Problem("", "a GGUF model is complete; it takes no adapter"))

    def remove(self, variant: str) -> None:
        """There is none to remove."""

    def prompt(self, variant: str, messages: Sequence[Message]) -> Prompt:
        """The tokens of a conversation as the file's own template writes it."""
        continues = self._prompts.continues
        tokens = self._model.tokens_of(self._prompts.text(messages), add_special=continues)
        if continues and len(tokens) > 1 and tokens[-1] == self._model.bounds[1]:
            tokens.pop()
        lead = tokens[-LEAD:] if continues else []
        return Prompt(tokens, self._ends, lead, self._model.text_of, self._opening)

    def begin(self, variant: str, tokens: Sequence[int]) -> _Session:
        """Keeps what the last conversation's prompt shares with this one, in whole chunks."""
        most = min(self._whole, (len(tokens) - 1) // CHUNK * CHUNK)
        same = next((at for at in range(most) if self._read[at] != tokens[at]), most)
        known = same // CHUNK * CHUNK
        self._model.forget(known)
        del self._read[known:]
        self._whole = known
        return _Session(self, known)

    def forward(self, tokens: Sequence[int]) -> torch.Tensor:
        """Goes on with tokens; the scores of the next one."""
        if len(tokens) == CHUNK and self._whole == len(self._read):
            self._whole += CHUNK
        scores = self._model.read(tokens)
        self._read += tokens
        return torch.from_numpy(scores)

    def close(self) -> None:
        """Gives the memory back."""
        self._model.close()
