"""The process that speaks with lm-evaluation-harness: what it is told, and how long it is waited for (T26)."""

import sys
from pathlib import Path

import pytest

from eval_service import suite_checks
from eval_service.suite_checks import suite_problems
from workerkit.child import environment


def answers(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> None:
    """Lets a program answer in place of the harness."""
    program = folder / "harness"
    program.write_text(f"#!{sys.executable}\n{code}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


def test_the_harness_is_told_no_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("TUNESMITH_NATS_PASSWORD", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, "a secret")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    answers(monkeypatch, tmp_path, "import json, os; print(json.dumps(list(os.environ)))")
    names = set(suite_problems(["a"], starts=False))
    assert {"HF_HOME", *environment.VARIABLES} <= names
    assert not [name for name in names if name.startswith(("TUNESMITH_", "AWS_", "HF_TOKEN"))]


def test_a_harness_that_does_not_answer_in_time_is_asked_again_by_the_worker(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(suite_checks, "SUBMIT_SECONDS", 0.1)
    monkeypatch.setattr(suite_checks, "START_SECONDS", 0.1)
    answers(monkeypatch, tmp_path, "import time; time.sleep(600)")
    assert suite_problems(["a"], starts=False) == []
    (problem,) = suite_problems(["a"], starts=True)
    assert "did not say within 0.1 s" in problem


def test_a_harness_that_breaks_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answers(monkeypatch, tmp_path, "raise SystemExit(3)")
    (problem,) = suite_problems(["a"], starts=False)
    assert "exit status 3" in problem
    assert suite_problems([], starts=False) == []
