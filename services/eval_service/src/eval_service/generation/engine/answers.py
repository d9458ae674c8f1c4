"""One answer in the making, a step at a time, so that several can take turns."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from eval_service.generation.engine.engines import Engine, Prompt
from eval_service.generation.engine.errors import ConversationRefused
from eval_service.generation.engine.sampling import Sampler, Sampling
from eval_service.generation.engine.text import Opening, StopTexts, TextStream
from modelkit.datasets import Message

STOP, LENGTH = "stop", "length"


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for: a conversation, how tokens are chosen, and where the answer ends."""

    variant: str
    messages: Sequence[Message]
    sampling: Sampling
    max_tokens: int
    stop: Sequence[str] = ()


class Answer:
    """Reads the prompt in chunks, then writes a token at each step until finish_reason is set.

    Raises ConversationRefused when the prompt leaves no room for an answer, GenerationError later.
    """

    def __init__(self, engine: Engine, wish: Wish) -> None:
        self._started = time.perf_counter()
        self._prompt = prompt = engine.prompt(wish.variant, wish.messages)
        self._most = min(wish.max_tokens, _room(engine, prompt))
        self._chunk = engine.chunk
        self._sampler = Sampler(wish.sampling, prompt.tokens, engine.vocabulary)
        self._text = TextStream(prompt.decode, prompt.lead)
        self._opening = Opening(prompt.opening)
        self._stops = StopTexts(wish.stop)
        self.finish_reason = ""
        self.completion_tokens = 0
        self.first_token_seconds = 0.0
        self._session = engine.begin(wish.variant, prompt.tokens)  # the last that may fail: it has to be closed
        self._unread = prompt.tokens[self._session.known :]

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the conversation."""
        return len(self._prompt.tokens)

    @property
    def seconds(self) -> float:
        """Time since the answer was begun."""
        return time.perf_counter() - self._started

    def step(self) -> str:
        """Reads a chunk or writes a token; the text that is certain by now."""
        chunk, self._unread = self._unread[: self._chunk], self._unread[self._chunk :]
        scores = self._session.read(chunk)
        if self._unread:
            return ""
        token = self._sampler.choose(scores)
        self.completion_tokens += 1
        self.first_token_seconds = self.first_token_seconds or self.seconds
        if token in self._prompt.ends:
            return self._finish(STOP)
        self._unread = [token]
        text = self._stops.add(self._opening.add(self._text.add(token)))
        if self._stops.found:
            self.finish_reason = STOP
        elif self.completion_tokens >= self._most:
            return text + self._finish(LENGTH)
        return text

    def _finish(self, reason: str) -> str:
        last = self._opening.add(self._text.end()) + self._opening.end()
        text = self._stops.add(last) + self._stops.end()
        self.finish_reason = STOP if self._stops.found else reason
        return text

    def close(self) -> None:
        """Gives the session back."""
        self._session.close()


def _room(engine: Engine, prompt: Prompt) -> int:
    room = engine.context - len(prompt.tokens)
    if room < 1:
        raise ConversationRefused(
            f"messages: the conversation has {len(prompt.tokens)} tokens and the model reads at most {engine.context}, "
            "the answer included; leave out earlier turns",
            reason="CONVERSATION_TOO_LONG",
        )
    return room
