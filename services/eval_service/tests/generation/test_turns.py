"""The turns that answers of one model take, with an engine that writes numbers."""

import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch

from eval_service.generation.engine.child import Connection, Turns
from eval_service.generation.engine.engines import Prompt
from modelkit.datasets import Message

GREEDY = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}


@dataclass
class Numbers:
    """Continues every conversation with the same word."""

    at_once: int = 1
    context: int = 64
    vocabulary: int = 4
    chunk: int = 8
    known: int = 0
    closed: list[str] = field(default_factory=list)

    def add(self, variant: str, directory: Path) -> int:
        return 1

    def remove(self, variant: str) -> None:
        return None

    def prompt(self, variant: str, messages: Sequence[Message]) -> Prompt:
        return Prompt([1, 2], frozenset(), [], lambda tokens: "x" * len(tokens))

    def begin(self, variant: str, tokens: Sequence[int]) -> "Numbers":
        return self

    def read(self, tokens: Sequence[int]) -> torch.Tensor:
        return torch.tensor([0.0, 0.0, 0.0, 1.0])

    def close(self) -> None:
        self.closed.append("one")


@pytest.fixture
def service() -> Iterator[socket.socket]:
    """The service's end of a connection to a model that gives one answer at a time."""
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    serving = threading.Thread(target=Turns(Numbers(), Connection(theirs)).serve)
    serving.start()
    with theirs, ours:
        yield ours
        ours.shutdown(socket.SHUT_RDWR)
        serving.join()


def ask(service: socket.socket, number: int) -> None:
    wish = {"variant": "", "messages": [], "sampling": GREEDY, "max_tokens": 3, "stop": []}
    service.sendall(orjson.dumps({"op": "generate", "id": number, **wish}) + b"\n")


def messages_until_done(service: socket.socket, *numbers: int) -> list[dict[str, Any]]:
    """What the process says until the answers of these numbers are done."""
    waiting, found = set(numbers), list[dict[str, Any]]()
    with service.makefile("rb") as lines:
        while waiting:
            found.append(orjson.loads(lines.readline()))
            if found[-1]["event"] == "done":
                waiting.discard(found[-1]["id"])
    return found


def test_an_answer_begins_when_the_one_before_it_is_written_whoever_has_read_that(service: socket.socket) -> None:
    """A caller who takes its answer slowly holds up nobody: the service need not say that it has been taken."""
    for number in (1, 2, 3):
        ask(service, number)
    ended = [message for message in messages_until_done(service, 1, 2, 3) if message["event"] == "done"]
    assert [message["id"] for message in ended] == [1, 2, 3]
    assert {message["finish_reason"] for message in ended} == {"length"}
