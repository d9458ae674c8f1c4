"""The demonstration: what it reads, how it fits itself to the machine, and one whole short run."""

import json
import socket
from pathlib import Path

import psutil
import pytest

from modelkit.scratch import build
from tunesmith_local.demo.docstrings import Pair, collect, first_paragraph, read, split, standard_library
from tunesmith_local.demo.pace import affordable_steps, seconds_per_step
from tunesmith_local.demo.run import main, shorten

SOURCE = '''"""Tools for testing the reader of documentation."""
import nothing_that_exists

class Thing:
    """A thing that is documented well enough.

    More about it.
    """
    def turn(self):
        """Turn the thing around its own axis,
        and back again."""
    def _hidden(self):
        """Nobody needs to know about this method."""
    class Inner:
        """A thing inside of another thing."""

async def wait():
    """Wait for the thing to be turned."""

def short():
    """Too short."""

def example():
    """Give an example >>> 1 + 1 and its answer."""
'''


def test_reads_documented_public_names_without_importing(tmp_path: Path) -> None:
    (tmp_path / "tools.py").write_text(SOURCE)
    assert list(read(tmp_path / "tools.py", "tools")) == [
        Pair("What is the module tools for?", "Tools for testing the reader of documentation."),
        Pair("What is the class tools.Thing?", "A thing that is documented well enough."),
        Pair("What does tools.Thing.turn do?", "Turn the thing around its own axis, and back again."),
        Pair("What is the class tools.Thing.Inner?", "A thing inside of another thing."),
        Pair("What does tools.wait do?", "Wait for the thing to be turned."),
    ]


def test_passes_over_what_is_no_python_or_not_public(tmp_path: Path) -> None:
    for name in ("_private.py", "test/helper.py", "sub/__init__.py", "copy.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(SOURCE)
    (tmp_path / "broken.py").write_bytes(b"def (\xff")
    questions = [pair.question for pair in collect(tmp_path)]
    assert questions[0] == "What is the module copy for?"
    assert not any("sub" in question or "helper" in question for question in questions)  # the same answers again


@pytest.mark.parametrize(
    "text",
    ["", "lower case start of a sentence", "Return caf\u00e9 and other drinks", "Word", "X " * 200, "A -> B is it not"],
)
def test_answers_are_prose(text: str) -> None:
    assert first_paragraph(text) == ""


def test_the_standard_library_holds_thousands() -> None:
    pairs = collect(standard_library())
    assert len(pairs) > 2500
    assert len({pair.question for pair in pairs}) == len({pair.answer for pair in pairs}) == len(pairs)
    training, held_out = split(pairs)
    assert not {pair.question for pair in training} & {pair.question for pair in held_out}
    assert (training, held_out) == split(pairs)
    assert 0.04 < len(held_out) / len(pairs) < 0.06


def test_steps_that_the_machine_can_afford(tmp_path: Path) -> None:
    assert affordable_steps(900, 100, 0.1, 50) == 900
    assert affordable_steps(900, 100, 1.0, 50) == 100
    assert affordable_steps(900, 100, 60.0, 50) == 50
    assert affordable_steps(20, 100, 60.0, 50) == 20
    build(tmp_path / "m", family="qwen2", hidden_size=32, layers=1, vocab_size=512, corpus=["some words to learn"])
    assert 0 < seconds_per_step(tmp_path / "m", 2, 8) < 30


def test_shortened_text() -> None:
    assert shorten("a\n b") == "a b"
    assert len(shorten("word " * 100)) == 81


def test_failure_is_told_and_leaves_nothing_running(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = psutil.Process().children()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["--data-dir", str(tmp_path / "data"), "--port", port]) == 1
    output = capsys.readouterr().out
    assert "The demonstration failed" in output
    assert "Address already in use" in output
    assert psutil.Process().children() == before


@pytest.mark.timeout(300)
def test_whole_demonstration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = psutil.Process().children()
    assert main(["--data-dir", str(tmp_path / "data"), "--seconds", "1"]) == 0
    output = capsys.readouterr().out
    assert "Done in" in output
    assert psutil.Process().children() == before
    tuned, exported = sorted((tmp_path / "data" / "outputs").iterdir())  # ids rise with time
    (report,) = (tuned / "evaluations").iterdir()
    assert (tuned / "model.safetensors").exists()
    assert json.loads((tuned / "config.json").read_text())["model_type"] == "qwen2"
    assert (report / "report.html").exists()
    assert (exported / "export.json").exists()
    (gguf,) = (tmp_path / "data" / "exports").iterdir()
    assert gguf.read_bytes()[:4] == b"GGUF"
