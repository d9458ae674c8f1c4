"""Lengths of rows before a training: by the model's tokenizer, which runs apart, or else roughly."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from modelkit import apart, scratch, token_lengths
from modelkit.datasets import LabelledText, Message, Row
from modelkit.loading import load_tokenizer

ROWS: list[Row] = [
    [Message(role="user", content="How do you do?"), Message(role="assistant", content="Very well — thanks 🙂")],
    "a text of its own",
    LabelledText("a text with a class", "good"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = Path(json.__file__).read_text()
    folder = tmp_path_factory.mktemp("models") / "model"
    return scratch.build(folder, hidden_size=32, layers=1, vocab_size=320, corpus=[text]).directory


def test_rows_have_the_tokens_that_the_tokenizer_counts(model: Path) -> None:
    tokenizer = load_tokenizer(model)
    texts = ["How do you do?", "Very well — thanks 🙂", "a text of its own", "a text with a class"]
    one, two, three, four = (len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
    assert token_lengths.token_lengths(model, ROWS) == [one + two + 10, three + 1, four + 1]


def test_a_tokenizer_that_cannot_be_used_gives_a_rough_count(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rough = [round(14 / 3.5) + round(21 / 3.5) + 10, round(17 / 3.5) + 1, round(19 / 3.5) + 1]
    assert token_lengths.token_lengths(tmp_path, ROWS) == rough
    (tmp_path / "tokenizer.json").write_text("{}")
    assert token_lengths.token_lengths(tmp_path, ROWS) == rough
    monkeypatch.setattr(token_lengths, "BOUNDS", apart.Bounds(1 << 20, 20))
    assert token_lengths.token_lengths(model, ROWS * 5000)[:3] == rough


def test_who_asks_loads_no_tokenizer(model: Path) -> None:
    code = """
import sys
from pathlib import Path
from modelkit.token_lengths import token_lengths
assert token_lengths(Path(sys.argv[1]), ["a text"])[0] > 1
assert "tokenizers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(model)], check=True)
