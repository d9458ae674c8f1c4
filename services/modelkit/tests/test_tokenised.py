"""Texts and classes as token ids, and rows that are kept in files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelkit import scratch
from modelkit.datasets import CLASSIFICATION, PRETRAINING, LabelledText, Reading, scan
from modelkit.encoded import IGNORED, Encoded
from modelkit.encoders import encoder_for
from modelkit.loading import load_config, load_tokenizer
from modelkit.text_encoders import ClassEncoder, TextEncoder, class_names
from modelkit.tokenised import TokenFile, tokenizer_sha256, write_rows


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = Path(json.__file__).read_text()
    folder = tmp_path_factory.mktemp("models") / "m"
    return scratch.build(folder, family="qwen2", hidden_size=32, layers=1, vocab_size=400, corpus=[text]).directory


@pytest.fixture
def tokenizer(model: Path) -> Any:
    return load_tokenizer(model)


def test_every_token_of_a_text_is_learnt_and_it_ends(tokenizer: Any) -> None:
    """M34: pretraining on plain text."""
    short, long = TextEncoder(tokenizer, max_length=12).encode(["one two", "word " * 50])
    assert short.input_ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(short.input_ids[:-1]) == "one two"
    assert (short.labels == short.input_ids).all()
    assert (short.truncated, long.truncated) == (False, True)
    assert len(long.input_ids) == 12
    (whole,) = TextEncoder(tokenizer).encode(["word " * 50])
    assert tokenizer.decode(whole.input_ids[:-1]) == "word " * 50


def test_a_text_has_the_number_of_its_class(tokenizer: Any) -> None:
    """C2: classification."""
    encoder = ClassEncoder(tokenizer, max_length=6, labels=("bad", "good"))
    good, unknown = encoder.encode([LabelledText("fine " * 20, "good"), LabelledText("odd", "other")])
    assert (good.label, good.truncated, good.masked, len(good.input_ids)) == (1, True, False, 6)
    assert (good.labels == IGNORED).all()
    assert unknown.masked
    assert class_names(("10", "9", "-1")) == ("-1", "9", "10")
    assert class_names(("b", "10", "a")) == ("10", "a", "b")
    assert class_names(("--1", "1")) == ("--1", "1")
    assert class_names(("9" * 5000, "1")) == ("1", "9" * 5000)


def test_prompts_are_learnt_too_when_asked(model: Path, tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "Say", "response": "Yes"}) + "\n")
    row: Any = [{"role": "user", "content": "Say"}, {"role": "assistant", "content": "Yes"}]
    report, config = scan(path), load_config(model)
    plain = encoder_for(report, tokenizer, config, max_length=64).encode([row])[0]
    whole = encoder_for(report, tokenizer, config, max_length=64, train_on_prompt=True).encode([row])[0]
    assert (plain.labels == IGNORED).any()
    assert (whole.labels == whole.input_ids).all()
    assert plain.input_ids.tolist() == whole.input_ids.tolist()


@pytest.mark.parametrize(
    ("row", "objective", "kind"),
    [
        ({"text": "a"}, "SUPERVISED", TextEncoder),
        ({"text": "a"}, PRETRAINING, TextEncoder),
        ({"text": "a", "label": 1}, CLASSIFICATION, ClassEncoder),
    ],
)
def test_each_format_has_its_encoder(
    model: Path, tokenizer: Any, tmp_path: Path, row: Any, objective: str, kind: type
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row) + "\n")
    encoder = encoder_for(scan(path, Reading(objective)), tokenizer, load_config(model), max_length=8)
    assert isinstance(encoder, kind)


def encoded(*tokens: int, learnt: int = 0, label: int = -1) -> Encoded:
    ids = np.array(tokens, dtype=np.int32)
    labels = ids.copy()
    labels[: len(tokens) - learnt] = IGNORED
    return Encoded(ids, labels, truncated=len(tokens) > 3, label=label)


def test_rows_come_back_from_files_as_they_were(tmp_path: Path) -> None:
    rows = [encoded(0, 7, 2, learnt=2), encoded(5, 6), encoded(1, 2, 3, 4, learnt=4, label=2)]
    write_rows(tmp_path, [rows[:2], [], rows[2:]])
    file = TokenFile(tmp_path)
    assert len(file) == 3
    for index, row in enumerate(rows):
        found = file.get(index)
        assert found.input_ids.tolist() == row.input_ids.tolist()
        assert found.labels.tolist() == row.labels.tolist()
        assert (found.truncated, found.label) == (row.truncated, row.label)
    assert file.lengths([2, 0]).tolist() == [4, 3]
    assert file.masked.tolist() == [False, True, False]
    assert file.window(1, 4).input_ids.tolist() == [7, 2, 5]
    (tmp_path / "tokens.bin").write_bytes(b"1234")
    with pytest.raises(ValueError, match="does not have the size"):
        TokenFile(tmp_path)


def test_no_rows_make_a_file_too(tmp_path: Path) -> None:
    write_rows(tmp_path, [])
    assert len(TokenFile(tmp_path)) == 0
    assert len(TokenFile.of([[encoded(1, 2)]])) == 1


def test_a_tokenizer_is_known_by_its_files(model: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    before = tokenizer_sha256(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert tokenizer_sha256(tmp_path) != before
