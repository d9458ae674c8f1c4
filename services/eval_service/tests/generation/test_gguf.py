"""A GGUF model answers as the model that it was made from."""

import json
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
from eval_service.generation.gguf_metadata import Metadata, read_metadata
from eval_service.generation.memory import PROCESS_BYTES, needed_by_gguf
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


def test_what_it_needs_is_told_from_its_metadata(models: dict[str, Path], tmp_path: Path) -> None:
    path = write_gguf(models["qwen2"], tmp_path / "m.gguf")
    metadata, config = read_metadata(path), json.loads((models["qwen2"] / "config.json").read_text())
    heads = config["num_attention_heads"]
    token = 2 * 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["hidden_size"] // heads
    assert needed_by_gguf(1000, metadata, 500) == 1000 + token * 500 + PROCESS_BYTES
    most = config["max_position_embeddings"]
    assert needed_by_gguf(1000, metadata, 1 << 20) == 1000 + token * most + PROCESS_BYTES
    each = metadata.entries | {"qwen2.attention.head_count_kv": [1, 3], "qwen2.attention.key_length": 10}
    width = 10 + config["hidden_size"] // heads
    assert needed_by_gguf(0, Metadata(each), 100) == 4 * width * 2 * 100 + PROCESS_BYTES


def test_a_damaged_file_tells_what_comes_before_the_damage(models: dict[str, Path], tmp_path: Path) -> None:
    whole = write_gguf(models["qwen2"], tmp_path / "m.gguf").read_bytes()
    known = read_metadata(tmp_path / "m.gguf").entries
    for size in (0, 3, 20, 30, 100, 400, 5000):
        (tmp_path / "cut.gguf").write_bytes(whole[:size])
        found = read_metadata(tmp_path / "cut.gguf").entries
        assert found.items() <= known.items()
        assert len(found) < len(known)
    (tmp_path / "cut.gguf").write_bytes(whole[:24] + b"\xff" * 100)
    assert read_metadata(tmp_path / "cut.gguf") == Metadata()
