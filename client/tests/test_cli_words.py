"""What the command says to somebody who is stuck, against a real HTTP server: mistakes, waiting tasks, its version."""

import importlib.metadata
from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
from rich.console import Console
from typer.testing import Result

from tunesmith.cli.text import with_problems
from tunesmith.cli.transfers import transfer_bar

Tunesmith = Callable[..., Result]
DATA = ("--base-model", "m", "--dataset", "d")


@pytest.mark.parametrize(
    "words", [("train", *DATA), ("estimate", *DATA), ("templates", "save", "t"), ("evaluate", "t"), ("chat", "t")]
)
def test_every_mistake_in_settings_is_told_at_once(tunesmith: Tunesmith, server: Any, words: tuple[str, ...]) -> None:
    result = tunesmith(*words, "--set", "seed", "--set", "sead=1", "--set", "seed=x")
    assert result.exit_code == 2
    assert all(
        word in result.stderr for word in ("--set seed: write", "sead: there is no such", "seed: takes a number")
    )
    assert server.requests == []


def test_problems_of_the_platform_have_a_line_each(tunesmith: Tunesmith, server: Any) -> None:
    problems = [("spec.base_model", "is not here"), ("spec.dataset", "does not exist")]
    server.refuse(400, "INVALID_ARGUMENT", "; ".join(": ".join(problem) for problem in problems), problems)
    result = tunesmith("train", *DATA)
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "Error: 2 problems",
        "  - spec.base_model: is not here",
        "  - spec.dataset: does not exist",
    ]


def test_without_a_token_it_says_how_to_give_one(tunesmith: Tunesmith, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUNESMITH_TOKEN")
    result = tunesmith("tasks", "list")
    assert result.exit_code == 3
    assert all(word in result.stderr for word in ("--token", "TUNESMITH_TOKEN", "--data-dir"))


@pytest.mark.parametrize(
    "url", ["nonsense", "127.0.0.1:8000", "ftp://host", "http://", "http://[::1", "http://host:abc", "http://host:0"]
)
def test_an_address_that_is_none(tunesmith: Tunesmith, url: str) -> None:
    result = tunesmith("tasks", "list", "--url", url)
    assert result.exit_code == 2
    assert url in result.stderr and "http://127.0.0.1:8000" in result.stderr


def test_a_waiting_task_says_what_for(tunesmith: Tunesmith, server: Any) -> None:
    task_id = server.add_task("t", depends_on=["before"])
    waiting = {"name": "t", "state": "STATE_PENDING", "depends_on": ["before"]}
    server.events = [{"event": {"type": f"task.{verb}", "task": waiting}} for verb in ("snapshot", "created")]
    server.connections = [(2, "end")]
    lines = tunesmith("tasks", "watch", task_id).stdout.splitlines()
    assert [line.partition(" ")[2] for line in lines] == ["pending: waits for before to complete, then for a worker"]
    assert "before" in tunesmith("tasks", "show", task_id).stdout


def test_version(tunesmith: Tunesmith) -> None:
    assert tunesmith("--version").stdout == f"tunesmith {importlib.metadata.version('tunesmith')}\n"


@pytest.mark.parametrize(("terminal", "shown"), [(True, True), (False, False)])
def test_a_bar_for_files_on_a_terminal_alone(terminal: bool, shown: bool) -> None:
    output = StringIO()
    with transfer_bar(Console(file=output, force_terminal=terminal, width=100), "model.gguf") as progress:
        progress(5_000, 10_000)
    assert ("model.gguf" in output.getvalue() and "5.0/10.0 kB" in output.getvalue()) == shown


@pytest.mark.parametrize(
    ("message", "problems", "shown"),
    [
        ("one", [], ["one"]),
        ("bad", ["line 3"], ["bad", "  - line 3"]),
        ("a: x", ["a: x"], ["a: x"]),
        ("a: x; b: y", ["a: x", "b: y"], ["2 problems", "  - a: x", "  - b: y"]),
    ],
)
def test_each_problem_is_told_once(message: str, problems: list[str], shown: list[str]) -> None:
    assert with_problems(message, problems) == shown
