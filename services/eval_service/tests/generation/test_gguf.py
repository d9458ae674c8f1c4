"""A GGUF model answers as the model that it was made from."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eval_service.generation.engine.answers import Answer, Wish
from eval_service.generation.engine.base_engine import BaseEngine
from eval_service.generation.engine.errors import ConversationRefused
from eval_service.generation.engine.gguf_engine import GgufEngine
from eval_service.generation.engine.llama import LlamaError
from eval_service.generation.engine.sampling import Sampling
from modelkit.datasets import Message
from services.eval_service.tests.generation.gguf_files import write_gguf

GREEDY = Sampling(temperature=0.0, repetition_penalty=1.0)
ASKED: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What does a lock do? 你好"},
]
LONG: list[Message] = [{"role": "user", "content": "def acquire(self): return True\n" * 40}]


@pytest.fixture
def engine(models: dict[str, Path], tmp_path: Path) -> Iterator[GgufEngine]:
    engine = GgufEngine(write_gguf(models["qwen2"], tmp_path / "m.gguf"), context=800)
    yield engine
    engine.close()


def answer(engine: Any, wish: Wish) -> tuple[str, Answer]:
    written, text = Answer(engine, wish), ""
    while not written.finish_reason:
        text += written.step()
    written.close()
    return text, written


def test_it_answers_as_its_model_does(engine: GgufEngine, models: dict[str, Path]) -> None:
    original = BaseEngine(models["qwen2"], stored="float32", context=800, at_once=1)
    for messages in (ASKED, LONG, ASKED):
        assert engine.prompt("", messages).tokens == original.prompt("", messages).tokens
        assert engine.prompt("", messages).ends == original.prompt("", messages).ends
        expected, _ = answer(original, Wish("", messages, GREEDY, 20))
        assert answer(engine, Wish("", messages, GREEDY, 20))[0] == expected


def test_a_conversation_is_read_once(engine: GgufEngine) -> None:
    first, _ = answer(engine, Wish("", LONG, GREEDY, 10))
    again = Answer(engine, Wish("", LONG, GREEDY, 10))
    assert again._session.known >= engine.chunk
    assert answer(engine, Wish("", LONG, GREEDY, 10))[0] == first


def test_what_it_refuses(engine: GgufEngine, tmp_path: Path) -> None:
    with pytest.raises(ConversationRefused, match="reads at most 800"):
        Answer(engine, Wish("", [*LONG, {"role": "assistant", "content": LONG[0]["content"]}] * 3, GREEDY, 10))
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(LlamaError, match=r"bad\.gguf cannot be loaded"):
        GgufEngine(tmp_path / "bad.gguf", context=100)
