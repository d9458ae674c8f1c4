"""Commands for what comes after training: evaluate, export, chat, against a real HTTP server."""

import hashlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from tunesmith.cli.chat import typed_lines
from tunesmith.cli.chat_words import GENERATION_PARAMETERS
from tunesmith.cli.evaluations_words import EVALUATION_PARAMETERS
from tunesmith.client import evaluation_parameters, generation_parameters, parameter_names

COMMAND = str(Path(sysconfig.get_path("scripts")) / "tunesmith")
PATIENCE = 60  # seconds
COMPLETED = {"event": {"type": "task.completed", "task": {"state": "STATE_COMPLETED"}}}
TASK = f"task{1:022}"
EVALUATION = {
    "task_id": TASK,
    "name": "scores",
    "state": "STATE_COMPLETED",
    "spec": {"source_task_id": "t"},
    "samples": "12",
    "recommended_step": "20",
    "recommendation": {"step": "20", "text": "Checkpoint 20 is the best."},
    "checkpoints": [
        {"base_model": True, "total": 0.25, "values": [{"name": "perplexity", "value": 9.5, "low": 9.0, "high": 10.0}]},
        {
            "step": "20",
            "total": 0.75,
            "total_low": 0.7,
            "total_high": 0.8125,
            "values": [{"name": "perplexity", "value": 3.5, "low": 3.0, "high": 4.0}],
        },
    ],
}
CONTENT = b"GGUF" * 1000
EXPORT = {
    "task_id": TASK,
    "name": "package",
    "state": "STATE_COMPLETED",
    "spec": {"source_task_id": "t", "format": "EXPORT_FORMAT_GGUF", "quantizations": ["Q8_0"]},
    "artifacts": [
        {"name": name, "size": str(len(CONTENT)), "sha256": hashlib.sha256(CONTENT).hexdigest()}
        for name in ("merged_model-Q8_0.gguf", "Modelfile")
    ],
    "checks": [
        {"artifact": "merged_model-Q8_0.gguf", "name": "perplexity", "value": 0.01, "limit": 0.05, "passed": True},
        {"artifact": "merged_model-Q8_0.gguf", "name": "template", "value": 1, "limit": 0, "text": "differs\x1b[31m"},
    ],
}
Tunesmith = Callable[..., Result]


@pytest.fixture
def results(server: Any) -> Any:
    """The server with a finished evaluation and a finished export."""
    server.answers = {
        f"GET /v1/evaluations/{TASK}": {"evaluation": EVALUATION},
        "GET /v1/evaluations": {"evaluations": [EVALUATION]},
        f"GET /v1/exports/{TASK}": {"export": EXPORT},
        "GET /v1/exports": {"exports": [EXPORT]},
    }
    for artifact in EXPORT["artifacts"]:
        server.files[f"/v1/exports/{TASK}/artifacts/{artifact['name']}"] = CONTENT  # type: ignore[index]
    for name in ("report.html", "report.json", "report.csv", "samples.csv"):
        server.files[f"/v1/evaluations/{TASK}/report/{name}"] = name.encode()
    return server


def test_evaluate_and_watch(tunesmith: Tunesmith, results: Any) -> None:
    results.events, results.connections = [COMPLETED], [(1, "end")]
    words = ("--checkpoints", "10, 20", "--base", "--dataset", "samples.jsonl", "--samples", "30", "--watch")
    result = tunesmith("evaluate", "t", *words, "--set", "temperature=0", "--set", "weight_perplexity=0.5")
    assert result.exit_code == 0, result.output
    body = results.requests[0][3]
    assert body["name"].startswith("evaluation_")
    spec = body["spec"]["evaluate"]
    assert (spec["source_task_id"], spec["checkpoint_steps"], spec["include_base_model"]) == ("t", ["10", "20"], True)
    assert (spec["max_samples"], spec["sampling"], spec["weights"]) == (30, {"temperature": 0.0}, {"perplexity": 0.5})
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"{TASK} pending evaluation_")
    assert any("base model" in line and "9.5 (9-10)" in line for line in lines)
    assert any(line.split()[:4] == ["20", "0.750", "(0.700-0.812)", "3.5"] for line in lines)
    assert any("base model" in line and " 0.250 " in line for line in lines), "nothing is said of an unknown interval"
    assert lines[-1] == "Checkpoint 20 is the best."


def test_mistakes_in_an_evaluation(tunesmith: Tunesmith, server: Any) -> None:
    words = ("--checkpoints", "10,last", "--samples", "5", "--set", "max_samples=6", "--set", "seed")
    result = tunesmith("evaluate", "t", *words)
    assert result.exit_code == 2
    assert all(word in result.stderr for word in ("--checkpoints last", "disagree", "write --set name=value"))
    assert tunesmith("evaluate", "t", "--set", "tempratur=1").exit_code == 2
    assert server.requests == []


@pytest.mark.parametrize("words", [("evaluate", "t"), ("export", "t", "--format", "merged")])
def test_what_is_watched_as_json_is_a_document_a_line(
    tunesmith: Tunesmith, results: Any, words: tuple[str, ...]
) -> None:
    results.events, results.connections = [COMPLETED], [(1, "end")]
    lines = [json.loads(line) for line in tunesmith(*words, "--watch", "--json").stdout.splitlines()]
    assert [line.get("type", line.get("name")) for line in lines][1:] == ["task.completed", lines[-1]["name"]]
    assert lines[-1]["task_id"] == TASK


def test_evaluations(tunesmith: Tunesmith, results: Any, tmp_path: Path) -> None:
    rows = tunesmith("evaluations", "list").stdout.splitlines()
    assert all(word in rows[1] for word in (TASK, "scores", "completed", "20"))
    assert json.loads(tunesmith("evaluations", "list", "--json").stdout)[0]["task_id"] == TASK
    page = tunesmith("evaluations", "show", TASK).stdout
    assert "Checkpoint 20 is the best." in page
    assert json.loads(tunesmith("evaluations", "show", TASK, "--json").stdout)["recommended_step"] == "20"
    result = tunesmith("evaluations", "report", TASK, "-o", str(tmp_path / "reports"))
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "reports").iterdir()) == [
        "report.csv",
        "report.html",
        "report.json",
        "samples.csv",
    ]
    assert (tmp_path / "reports" / "report.html").read_bytes() == b"report.html"


def test_export_and_fetch(tunesmith: Tunesmith, results: Any, tmp_path: Path) -> None:
    results.events, results.connections = [COMPLETED], [(1, "end")]
    words = ("--format", "gguf", "--type", "Q8_0,Q4_K_M", "--type", "F16", "--checkpoint", "10", "--no-modelfile")
    result = tunesmith("export", "t", *words, "--output-dir", "/out", "-o", str(tmp_path / "here"))
    assert result.exit_code == 0, result.output
    spec = results.requests[0][3]["spec"]["export"]
    assert spec == {
        "source_task_id": "t",
        "checkpoint_step": "10",
        "format": "EXPORT_FORMAT_GGUF",
        "quantizations": ["Q8_0", "Q4_K_M", "F16"],
        "output_dir": "/out",
        "modelfile": False,
    }
    assert (tmp_path / "here" / "merged_model-Q8_0.gguf").read_bytes() == CONTENT
    assert result.stdout.splitlines()[-1] == str(tmp_path / "here" / "Modelfile")
    assert all(word in result.stdout for word in ("perplexity", "passed"))


@pytest.mark.parametrize("state", ["FAILED", "STOPPED"])
def test_nothing_is_fetched_of_an_export_that_failed(
    tunesmith: Tunesmith, server: Any, tmp_path: Path, state: str
) -> None:
    event = {"event": {"type": f"task.{state.lower()}", "task": {"state": f"STATE_{state}"}}}
    server.events, server.connections = [event], [(1, "end")]
    result = tunesmith("export", "t", "--format", "merged", "-o", str(tmp_path / "here"))
    assert result.exit_code == 1
    assert not (tmp_path / "here").exists()


def test_an_export_that_was_stopped_has_no_files(tunesmith: Tunesmith, server: Any, tmp_path: Path) -> None:
    server.answers = {f"GET /v1/exports/{TASK}": {"export": {"task_id": TASK, "state": "STATE_STOPPED"}}}
    result = tunesmith("exports", "download", TASK, "-o", str(tmp_path / "here"))
    assert (result.exit_code, f"export {TASK} is stopped; its files" in result.stderr) == (3, True)
    assert not (tmp_path / "here").exists()


def test_exports(tunesmith: Tunesmith, results: Any, tmp_path: Path) -> None:
    rows = tunesmith("exports", "list").stdout.splitlines()
    assert all(word in rows[1] for word in (TASK, "package", "gguf Q8_0", "completed"))
    page = tunesmith("exports", "show", TASK).stdout
    assert all(word in page for word in ("merged_model-Q8_0.gguf", "4.0 kB", "passed", "differs"))
    assert "\x1b" not in page
    result = tunesmith("exports", "download", TASK, "Modelfile", "-o", str(tmp_path / "mine"), "--json")
    assert json.loads(result.stdout) == {"name": "Modelfile", "path": str(tmp_path / "mine")}
    (tmp_path / "mine").write_bytes(b"")
    result = tunesmith("exports", "download", TASK, "-o", str(tmp_path / "mine"))
    assert (result.exit_code, "name a directory" in result.stderr) == (2, True)
    assert tunesmith("exports", "download", TASK, "nothing", "-o", str(tmp_path)).exit_code == 3
    results.answers["GET /v1/export-formats"] = {
        "formats": [{"format": "EXPORT_FORMAT_GGUF", "quantization": "Q8_0", "bits_per_weight": 8.5}],
        "templates": [
            {"name": "small", "format": "EXPORT_FORMAT_GGUF", "quantizations": ["Q4_K_M", "Q8_0"], "is_default": True},
            {"name": "lora_only", "format": "EXPORT_FORMAT_GGUF_ADAPTER", "description": "The adapter alone."},
        ],
    }
    assert "(not in this version)" in tunesmith("exports", "formats").stdout
    rows = tunesmith("exports", "templates").stdout.splitlines()
    assert " ".join(rows[1].split()) == "small --format gguf --type Q4_K_M --type Q8_0 (the first choice)"
    assert " ".join(rows[2].split()) == "lora_only --format gguf-adapter The adapter alone."
    assert [item["name"] for item in json.loads(tunesmith("exports", "templates", "--json").stdout)] == [
        "small",
        "lora_only",
    ]
    assert "exports templates" in tunesmith("export", "--help").stdout


def answer(*words: str) -> list[dict[str, Any]]:
    usage = {"finish_reason": "stop", "usage": {"completion_tokens": str(len(words))}}
    return [{"loading": {"phase": "loading model"}}, *({"text": word} for word in words), usage]


def test_one_question(tunesmith: Tunesmith, server: Any) -> None:
    server.events = answer("Bonjour\n", "le \x1b[31mmonde")
    server.connections = [(9, "end"), (9, "end")]
    words = ("chat", "t", "--checkpoint", "5", "--system", "French", "--prompt", "hi", "--set", "max_tokens=9")
    result = tunesmith(*words)
    assert (result.exit_code, result.stdout) == (0, "Bonjour\nle �[31mmonde\n")
    body = server.requests[0][3]
    assert (body["task_id"], body["checkpoint_step"], body["max_tokens"]) == ("t", "5", 9)
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    document = json.loads(tunesmith(*words, "--json").stdout)
    assert (document["text"], document["finish_reason"]) == ("Bonjour\nle \x1b[31mmonde", "stop")
    assert document["usage"] == {"completion_tokens": "2"}


def test_two_checkpoints_side_by_side(tunesmith: Tunesmith, server: Any) -> None:
    server.events, server.connections = answer("yes"), [(9, "end")] * 2
    result = tunesmith("chat", "t", "--prompt", "hi", "--compare", "10")
    assert result.stdout.splitlines() == ["--- final model", "yes", "--- checkpoint 10", "yes"]
    assert [request[3].get("checkpoint_step") for request in server.requests] == [None, "10"]


def test_the_base_model_beside_checkpoints(tunesmith: Tunesmith, server: Any) -> None:
    server.events, server.connections = answer("yes"), [(9, "end")] * 3
    result = tunesmith("chat", "t", "--prompt", "hi", "--base", "--compare", "10", "--compare", "0")
    headings = [line for line in result.stdout.splitlines() if line.startswith("---")]
    assert headings == ["--- base model", "--- checkpoint 10", "--- final model"]
    asked = [(request[3].get("base_model"), request[3].get("checkpoint_step")) for request in server.requests]
    assert asked == [(True, None), (None, "10"), (None, None)]


def test_several_turns(tunesmith: Tunesmith, server: Any) -> None:
    server.events, server.connections = answer("yes"), [(9, "end")] * 3
    result = tunesmith("chat", "t", "--system", "s", input="first\n\nsecond\n/reset\nthird\n/exit\nnever\n")
    assert (result.exit_code, result.stdout) == (0, "yes\n" * 3)
    said = [[message["content"] for message in request[3]["messages"]] for request in server.requests]
    assert said == [["s", "first"], ["s", "first", "yes", "second"], ["s", "third"]]


def test_mistakes_in_a_chat(tunesmith: Tunesmith, server: Any) -> None:
    assert tunesmith("chat", "t", "--compare", "3").exit_code == 2
    for empty in ("", " \n"):
        result = tunesmith("chat", "t", "-p", empty)
        assert (result.exit_code, server.requests) == (2, [])
        assert "--prompt is empty" in result.output
    result = tunesmith("chat", "t", "--prompt", "x", "--set", "warmth=1", "--set", "temperature=hot")
    assert (result.exit_code, "warmth" in result.stderr, "temperature" in result.stderr) == (2, True, True)
    server.events, server.connections = answer("yes"), [(1, "error")]
    result = tunesmith("chat", "t", input="hi\n")
    assert (result.exit_code, "the task was deleted" in result.stderr) == (3, True)


def test_an_interrupted_answer_ends_the_command(server: Any) -> None:
    server.events, server.connections = answer("yes"), [(2, "hold")]
    environment = os.environ | {"TUNESMITH_URL": server.url, "TUNESMITH_TOKEN": "secret"}
    words = [COMMAND, "chat", "t", "--prompt", "hi"]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(3) == b"yes"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130


def test_an_interrupt_between_answers_ends_no_conversation(server: Any) -> None:
    server.events, server.connections = answer("yes"), [(9, "end")]
    environment = os.environ | {"TUNESMITH_URL": server.url, "TUNESMITH_TOKEN": "secret"}
    terminal, end = pty.openpty()
    with subprocess.Popen([COMMAND, "chat", "t"], env=environment, stdin=end, stdout=end, stderr=end) as process:
        os.close(end)
        seen = read_until(terminal, b"> ")
        wait_for_reading(process)
        process.send_signal(signal.SIGINT)
        seen += read_until(terminal, b"(Ctrl-D ends)\r\n> ")
        os.write(terminal, b"hi\n")
        seen += read_until(terminal, b"yes\r\n> ")
        os.write(terminal, b"\x04")
        assert process.wait(PATIENCE) == 0, seen
    os.close(terminal)


def read_until(terminal: int, text: bytes) -> bytes:
    """What a terminal shows, up to a text."""
    seen = b""
    while not seen.endswith(text):
        ready, _, _ = select.select([terminal], [], [], PATIENCE)
        assert ready, f"{text!r} does not come after {seen!r}"
        try:
            seen += os.read(terminal, 1000)
        except OSError as error:  # EIO: nobody has the other end open any more
            raise AssertionError(f"the command ended before {text!r}, after {seen!r}") from error
    return seen


def wait_for_reading(process: subprocess.Popen[bytes]) -> None:
    """Until a command that has shown its prompt sleeps in its read: an interrupt before is noticed with the next."""
    deadline = time.monotonic() + PATIENCE
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "S":
        assert time.monotonic() < deadline, "the command does not wait for its user"
        os.sched_yield()


def test_a_second_interrupt_ends_no_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even while the words about the first are written."""
    typed: list[str | BaseException] = [KeyboardInterrupt(), "hi", EOFError()]
    written: list[BaseException | None] = [KeyboardInterrupt(), None]

    def read(_: str) -> str:
        line = typed.pop(0)
        if isinstance(line, str):
            return line
        raise line

    def write(*_: object, **__: object) -> None:
        if error := written.pop(0):
            raise error

    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr("builtins.print", write)
    lines = list(typed_lines())
    monkeypatch.undo()
    assert (lines, typed, written) == (["hi"], [], [])


def test_tasks_of_one_kind(tunesmith: Tunesmith, server: Any) -> None:
    server.add_task("package", spec={"export": {"source_task_id": "t"}})
    rows = tunesmith("tasks", "list", "--kind", "export", "--source", "t").stdout.splitlines()
    assert "export" in rows[1]
    assert all(word in server.requests[-1][1] for word in ("kinds=KIND_EXPORT", "source_task_id=t"))
    assert "starts from" in tunesmith("tasks", "show", TASK).stdout


def test_help_names_every_parameter() -> None:
    assert EVALUATION_PARAMETERS.split(", ") == evaluation_parameters()
    assert GENERATION_PARAMETERS.split(", ") == generation_parameters()


@pytest.mark.parametrize(
    ("words", "parameters"),
    [
        (("train",), parameter_names()),
        (("estimate",), parameter_names()),
        (("templates", "save"), parameter_names()),
        (("evaluate",), evaluation_parameters()),
        (("chat",), generation_parameters()),
    ],
)
def test_the_example_of_a_parameter_fits_its_command(
    tunesmith: Tunesmith, words: tuple[str, ...], parameters: list[str]
) -> None:
    example = re.search(r"A parameter, for example (\w+)=\S+\. Repeatable", tunesmith(*words, "--help").stdout)
    assert example is not None
    assert example[1] in parameters


def test_an_export_takes_no_parameters(tunesmith: Tunesmith) -> None:
    assert "--set" not in tunesmith("export", "--help").stdout
