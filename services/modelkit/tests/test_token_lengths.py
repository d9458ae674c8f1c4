"""Lengths of rows before a training: by the model's tokenizer, which runs apart, or else roughly."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from modelkit import apart, scratch, token_lengths
from modelkit.chat import ChatEncoder
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


def counted(model: Path) -> list[int]:
    """Tokens of the texts in ROWS."""
    tokenizer = load_tokenizer(model)
    texts = ["How do you do?", "Very well — thanks 🙂", "a text of its own", "a text with a class"]
    return [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]


def with_template(model: Path, folder: Path, template: object) -> Path:
    """A copy of a model whose tokenizer's settings hold a template, or none."""
    shutil.copytree(model, folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    path = folder / "tokenizer_config.json"
    config = {name: value for name, value in json.loads(path.read_text()).items() if name != "chat_template"}
    path.write_text(json.dumps(config | ({"chat_template": template} if template else {})))
    return folder


@pytest.mark.parametrize("name", ["of the family", "none", "in a list"])
def test_rows_have_the_tokens_that_a_training_sees(model: Path, tmp_path: Path, name: str) -> None:
    """T20: with what the chat template adds, be it much."""
    if name == "none":
        model = with_template(model, tmp_path / name, None)
    elif name == "in a list":
        template = "{{ bos_token }}{% for m in messages %}<<{{ m.role }}>>{{ m.content }}{{ eos_token }}{% endfor %}"
        named = [{"name": "tool_use", "template": ""}, {"name": "default", "template": template}]
        model = with_template(model, tmp_path / name, named)
    *_, three, four = counted(model)
    (conversation,) = ChatEncoder(load_tokenizer(model), max_length=1000).encode(ROWS[:1])  # type: ignore[arg-type]
    assert token_lengths.token_lengths(model, ROWS) == [len(conversation.input_ids), three + 1, four + 1]


@pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "{% for %}", "{{ 'x' * 1000000000 }}"])
def test_a_template_that_fails_is_made_up_for(model: Path, tmp_path: Path, template: str) -> None:
    one, two, three, four = counted(model)
    broken = with_template(model, tmp_path / "broken", template)
    assert token_lengths.token_lengths(broken, ROWS) == [one + two + 10, three + 1, four + 1]


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
