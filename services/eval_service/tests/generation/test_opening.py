"""What a template writes before a reply is no part of an answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from eval_service.generation.engine.answers import Answer, Wish
from eval_service.generation.engine.engines import Prompt
from eval_service.generation.engine.prompts import Prompts, opening_of
from eval_service.generation.engine.sampling import Sampling
from eval_service.generation.engine.text import Opening
from modelkit.chatglm.tokenizer import CHATGLM2_TEMPLATE, CHATGLM3_TEMPLATE
from modelkit.datasets import Message
from modelkit.scratch import chat_templates
from modelkit.templates import FALLBACK
from tests.support.models import THINKING_TEMPLATE

EMPTY = "<think>\n\n</think>\n\n"
REFUSING = "{{ raise_exception('no') }}"
SILENT = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% else %}\n{% endif %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "opening"),
    [
        (CHATGLM3_TEMPLATE, "\n "),
        (CHATGLM2_TEMPLATE, ""),
        (chat_templates.LLAMA2, " "),
        (chat_templates.LLAMA3, ""),
        (chat_templates.CHATML, ""),
        (chat_templates.PHI, ""),
        (FALLBACK, ""),
        (THINKING_TEMPLATE, "<think>\n\n</think>\n\n"),
        (SILENT, ""),
        (REFUSING, ""),
        ("", ""),
    ],
)
def test_it_is_what_the_template_writes_between_question_and_reply(template: str, opening: str) -> None:
    assert Prompts(template, {"bos_token": "<s>", "eos_token": "</s>"}).before_reply == opening


def test_special_tokens_in_it_are_no_text() -> None:
    def decode(tokens: Sequence[int]) -> str:
        return "".join(map(chr, tokens)).replace("<think>", "")

    prompts = Prompts(THINKING_TEMPLATE, {})
    assert opening_of(prompts, lambda text: list(map(ord, text)), decode) == "\n\n</think>\n\n"


@pytest.mark.parametrize(
    ("taught", "pieces", "expected"),
    [
        ("\n ", ["\n", " ", "Hello", "\n there"], "Hello\n there"),
        ("\n ", ["\n Hello"], "Hello"),
        ("\n ", ["", "\n", "Hello"], "Hello"),
        ("\n ", ["\n \n Hello"], "\n Hello"),
        ("\n ", [" Hello"], " Hello"),
        ("", ["\n Hello"], "\n Hello"),
        (EMPTY, ["<think>", "\n\n", "</think>", "\n\n", "Hello"], "Hello"),
        (EMPTY, ["<think>\n", "Hm\n</think>"], "<think>\nHm\n</think>"),
        (EMPTY, ["<think>", "\n"], "<think>\n"),
        (EMPTY, ["Hello"], "Hello"),
    ],
)
def test_no_more_than_was_taught_is_taken_away(taught: str, pieces: list[str], expected: str) -> None:
    opening = Opening(taught)
    assert "".join(map(opening.add, pieces)) + opening.end() == expected


@dataclass
class Script:
    """Writes texts one after the other, each by a token of its own, then ends."""

    texts: Sequence[str]
    opening: str
    at_once: int = 1
    context: int = 64
    chunk: int = 8
    known: int = 0
    written: int = 0
    vocabulary: int = 8

    def add(self, variant: str, directory: Path) -> int:
        return 1

    def remove(self, variant: str) -> None:
        return None

    def prompt(self, variant: str, messages: Sequence[Message]) -> Prompt:
        end = frozenset({len(self.texts)})
        return Prompt([0], end, [], lambda tokens: "".join(self.texts[token] for token in tokens), self.opening)

    def begin(self, variant: str, tokens: Sequence[int]) -> "Script":
        return self

    def read(self, tokens: Sequence[int]) -> torch.Tensor:
        scores = torch.zeros(self.vocabulary)
        scores[self.written] = 1.0
        self.written += 1
        return scores

    def close(self) -> None:
        return None


def test_an_answer_begins_behind_it_and_no_stop_text_is_found_in_it() -> None:
    wish = Wish("", [], Sampling(temperature=0.0, repetition_penalty=1.0), 10, ["\n"])
    for opening, expected in (("\n ", "Hello you"), ("", "")):
        answer, told = Answer(Script(["\n", " Hello", " you", "\nmore"], opening), wish), ""
        while not answer.finish_reason:
            told += answer.step()
        assert (told, answer.finish_reason) == (expected, "stop")
