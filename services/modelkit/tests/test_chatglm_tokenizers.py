"""The tokenizers and conversations of converted ChatGLM2, ChatGLM3 and GLM-4 models are the originals' (F1, F10)."""

import base64
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from tokenizers import Regex, pre_tokenizers

from modelkit.base_models import BaseModels
from modelkit.chat import IGNORED, ChatEncoder
from modelkit.chatglm.byte_level import SPLIT, read_ranks
from modelkit.errors import InvalidModel
from modelkit.loading import load_config, load_model, load_tokenizer
from services.modelkit.tests.chatglm_checkpoints import (
    GROUPS,
    checkpoint,
    configuration,
    models,
    reference,
    sentencepiece_model,
)

__all__ = ["models", "sentencepiece_model"]

SPECIAL = 9
TEXTS = [
    "hello world",
    "你好，世界",
    "\n",
    "def f(x):\n    return x",
    "é 🙂 日本語",
    "a sophisticated top",
    " two  spaces ",
]


def test_the_converted_tokenizer_gives_the_numbers_of_the_original(
    tmp_path: Path, models: BaseModels, sentencepiece_model: Path
) -> None:
    checkpoint(tmp_path / "root" / "chatglm3-6b", sentencepiece_model, configuration())
    folder = models.ready(models.resolve("chatglm3-6b"))
    tokenizer: Any = load_tokenizer(folder)
    original = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model))
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == original.encode(text), text
        assert tokenizer.decode(ids) == text
    first = original.vocab_size()
    names = ["[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>"]
    assert tokenizer.convert_tokens_to_ids(names) == list(range(first, first + len(names)))
    assert len(tokenizer) == first + SPECIAL
    assert tokenizer("x")["input_ids"][:2] == [first + 1, first + 3]
    assert load_config(folder).eos_token_id == [2, first + 6, first + 8]


def test_configuration_and_tokenizer_are_there_before_the_conversion(tmp_path: Path, sentencepiece_model: Path) -> None:
    """A look at data at submit needs no weights."""
    source = tmp_path / "chatglm3-6b"
    checkpoint(source, sentencepiece_model, configuration())
    config, tokenizer = load_config(source), load_tokenizer(source)
    assert (config.model_type, config.num_key_value_heads) == ("glm", GROUPS)
    assert tokenizer.convert_ids_to_tokens(tokenizer("x")["input_ids"])[:2] == ["[gMASK]", "<sop>"]


CONVERSATION = [
    {"role": "system", "content": "Kurz."},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "world"},
    {"role": "user", "content": "return"},
    {"role": "assistant", "content": "object"},
]


def test_conversations_are_written_as_chatglm3_writes_them(
    tmp_path: Path, models: BaseModels, sentencepiece_model: Path
) -> None:
    """Each message is a role's token, an empty line, and the message, encoded by itself as the original does."""
    checkpoint(tmp_path / "root" / "chatglm3-6b", sentencepiece_model, configuration())
    folder = models.ready(models.resolve("chatglm3-6b"))
    config, tokenizer = load_config(folder), load_tokenizer(folder)
    original = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model))
    first = original.vocab_size()
    roles = {"system": first + 5, "user": first + 6, "assistant": first + 7}
    expected = [first + 1, first + 3]
    for message in CONVERSATION:
        expected += [roles[message["role"]], *original.encode("\n"), *original.encode(message["content"])]
    ends: Any = config.eos_token_id
    (row,) = ChatEncoder(tokenizer, max_length=500, stop_ids=ends).encode([CONVERSATION])  # type: ignore[list-item]
    assert row.input_ids.tolist() == [*expected, 2]
    labelled = row.input_ids[row.labels != IGNORED].tolist()
    line = original.encode("\n")
    assert labelled == [*line, *original.encode("world"), first + 6, *line, *original.encode("object"), 2]


def test_conversations_are_written_as_chatglm2_writes_them(
    tmp_path: Path, models: BaseModels, sentencepiece_model: Path
) -> None:
    checkpoint(tmp_path / "root" / "chatglm2-6b", sentencepiece_model, configuration())
    tokenizer: Any = load_tokenizer(models.ready(models.resolve("chatglm2-6b")))
    text = tokenizer.apply_chat_template(CONVERSATION[1:4], tokenize=False)
    assert text == "[gMASK]<sop>[Round 1]\n\n问：hello\n\n答：world\n\n[Round 2]\n\n问：return\n\n答："


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tokenizer of the kind that GLM-4 has: byte strings by rank, learnt by counting neighbours."""
    text = (Path(json.__file__).read_text() + "你好，世界。" * 40).encode()
    tokens = [bytes([byte]) for byte in range(256)]
    parts = [tokens[byte] for byte in text]
    while len(tokens) < 400:
        pairs = Counter(first + second for first, second in itertools.pairwise(parts) if b"\n" not in second)
        best = pairs.most_common(1)[0][0]
        tokens.append(best)
        parts = merged(parts, best)
    path = tmp_path_factory.mktemp("ranks") / "tokenizer.model"
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)))
    return path


def merged(parts: list[bytes], wanted: bytes) -> list[bytes]:
    """Neighbours that make a token joined, from the left."""
    found: list[bytes] = []
    for part in parts:
        if found and found[-1] + part == wanted:
            found[-1] = wanted
        else:
            found.append(part)
    return found


def by_ranks(text: str, ranks: dict[bytes, int], split: str) -> list[int]:
    """The ids of a text as the ranks mean them: in each part, the neighbours of the lowest rank are joined first."""
    ids = []
    for piece, _ in pre_tokenizers.Split(Regex(split), behavior="isolated").pre_tokenize_str(text):
        parts = [bytes([byte]) for byte in piece.encode()]
        while joined := [first + second for first, second in itertools.pairwise(parts) if first + second in ranks]:
            best = min(joined, key=lambda token: ranks[token])
            at = next(at for at in range(len(parts)) if parts[at] + parts[at + 1] == best)
            parts[at : at + 2] = [best]
        ids += [ranks[part] for part in parts]
    return ids


def test_glm4_in_its_original_layout_is_converted_too(tmp_path: Path, models: BaseModels, ranks: Path) -> None:
    config = configuration(rope_ratio=500, eos_token_id=[400, 407, 409], pad_token_id=400)
    weights = checkpoint(tmp_path / "root" / "THUDM" / "glm-4-9b", ranks, config)
    folder = models.ready(models.resolve("THUDM/glm-4-9b"))
    assert load_config(folder).eos_token_id == [400, 407, 409]
    assert load_config(folder).pad_token_id == 400
    tokenizer: Any = load_tokenizer(folder)
    known = {token: rank for rank, token in enumerate(read_ranks(ranks))}
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == by_ranks(text, known, SPLIT), text
        assert tokenizer.decode(ids) == text
    (row,) = ChatEncoder(tokenizer, max_length=500, stop_ids=[407]).encode([CONVERSATION[1:]])  # type: ignore[list-item]
    shown = tokenizer.decode(row.input_ids)
    assert shown == (
        "[gMASK]<sop><|user|>\nhello<|assistant|>\nworld<|user|>\nreturn<|assistant|>\nobject<|endoftext|>"
    )
    ids = torch.arange(60)
    with torch.no_grad():
        logits = load_model(folder, dtype=torch.float32)(ids[None]).logits[0]
    assert torch.allclose(logits, reference(ids, weights, config, base=5e6, stretch=1.0), atol=2e-4)


@pytest.mark.parametrize("content", ["AA==\n", "AA== 0\n!!! 1\n", "AA== 0\nAQ== 5\n"])
def test_damaged_ranks_name_their_line(tmp_path: Path, models: BaseModels, ranks: Path, content: str) -> None:
    source = tmp_path / "root" / "glm-4-9b"
    checkpoint(source, ranks, configuration())
    (source / "tokenizer.model").write_text(content)
    with pytest.raises(InvalidModel, match=r"tokenizer\.model, line \d"):
        models.ready(models.resolve("glm-4-9b"))
