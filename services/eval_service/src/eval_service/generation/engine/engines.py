"""What an answer needs of a model, whatever runs it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from modelkit.datasets import Message


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation as tokens. ends are the tokens that end an answer; lead are the tokens before the answer on which
    its first space depends, empty where an answer begins anew. decode makes text of tokens. opening is what answers
    begin with because the template writes it."""

    tokens: list[int]
    ends: frozenset[int]
    lead: list[int]
    decode: Callable[[Sequence[int]], str]
    opening: str = ""


class Session(Protocol):
    """The model's memory of one conversation. known counts the tokens of the prompt that need not be read again."""

    known: int

    def read(self, tokens: Sequence[int]) -> torch.Tensor:
        """Goes on with tokens; the scores of the next one, (vocabulary,) float32 on the CPU."""

    def close(self) -> None:
        """The conversation is over for now."""


class Engine(Protocol):
    """A model in memory. variant names an adapter that was added; empty for the model itself.

    context is how many tokens a conversation with its answer may have, at_once how many answers can be in the making.
    """

    context: int
    vocabulary: int
    at_once: int
    chunk: int

    def add(self, variant: str, directory: Path) -> int:
        """Brings an adapter into memory and returns its size in bytes. Raises ModelkitError, OSError."""

    def remove(self, variant: str) -> None:
        """Forgets an adapter; answers in the making keep it."""

    def prompt(self, variant: str, messages: Sequence[Message]) -> Prompt:
        """The tokens of a conversation. Raises ConversationRefused."""

    def begin(self, variant: str, tokens: Sequence[int]) -> Session:
        """A session for a prompt."""
