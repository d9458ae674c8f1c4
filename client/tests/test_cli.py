"""The tunesmith command against a real HTTP server: its words, what it prints, how it exits."""

import json
import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from rich.console import Console
from typer.testing import CliRunner, Result

from tunesmith.cli import app
from tunesmith.cli.options import PARAMETERS
from tunesmith.cli.text import harmless
from tunesmith.cli.watching import Rate, TaskView
from tunesmith.client import parameter_names
from tunesmith.task.v1.event_pb2 import TaskEvent

COMMAND = str(Path(sysconfig.get_path("scripts")) / "tunesmith")
STARTED = {"event": {"type": "task.started", "task": {"name": "demo", "state": "STATE_RUNNING", "attempt": 1}}}
PROGRESSED = {"event": {"type": "task.progressed", "progress": {"step": "5", "total_steps": "10", "percent": 50.0}}}
LOGGED = {"event": {"type": "metrics.logged", "metrics": {"points": [{"name": "loss", "step": "5", "value": 1.25}]}}}
SAVED = {"event": {"type": "checkpoint.saved", "checkpoint": {"checkpoint": {"step": "5", "size": "2000000"}}}}


def ended(state: str, **values: Any) -> dict[str, Any]:
    return {"event": {"type": f"task.{state}", "task": {"state": f"STATE_{state.upper()}", **values}}}


def test_train_and_watch(tunesmith: Callable[..., Result], server: Any, tmp_path: Path) -> None:
    server.events = [STARTED, PROGRESSED, LOGGED, SAVED, ended("completed", output_dir="/out")]
    server.connections = [(5, "end")]
    (tmp_path / "train.jsonl").touch()
    task_id = f"task{1:022}"
    words = ("--base-model", "m", "--dataset", str(tmp_path / "train.jsonl"), "--method", "full", "--watch")
    result = tunesmith("train", *words, "--set", "learning_rate=1e-3", "--set", "max_steps=10", "--name", "demo")
    assert result.exit_code == 0, result.output
    body = server.requests[0][3]
    assert body["name"] == "demo"
    assert body["spec"]["finetune"]["dataset"]["path"] == str(tmp_path / "train.jsonl")
    assert body["spec"]["finetune"]["training"] == {"learning_rate": 0.001, "max_steps": 10}
    assert body["spec"]["finetune"]["language_model"] == {"method": "METHOD_FULL"}
    lines = result.stdout.splitlines()
    assert lines[0] == f"{task_id} pending demo"
    assert "running (attempt 1" in lines[1]
    assert "50.0 % 5/10" in lines[2]
    assert "checkpoint 5 saved (2.0 MB)" in lines[3]
    assert "completed: /out" in lines[4]


@pytest.mark.parametrize(("state", "code"), [("COMPLETED", 0), ("FAILED", 1), ("STOPPED", 1)])
def test_watch_exits_as_the_task_ended(tunesmith: Callable[..., Result], server: Any, state: str, code: int) -> None:
    task_id = server.add_task("t", f"STATE_{state}")
    error = {"reason": "OUT_OF_MEMORY", "message": "use a smaller batch"}
    server.events = [STARTED, ended(state.lower(), error=error)]
    server.connections = [(2, "end")]
    result = tunesmith("tasks", "watch", task_id)
    assert result.exit_code == code
    assert ("OUT_OF_MEMORY: use a smaller batch" in result.stdout) == (state == "FAILED")


def test_watch_as_json(tunesmith: Callable[..., Result], server: Any) -> None:
    task_id = server.add_task("t", "STATE_COMPLETED")
    server.events = [STARTED, PROGRESSED]
    server.connections = [(2, "end")]
    lines = [json.loads(line) for line in tunesmith("tasks", "watch", task_id, "--json").stdout.splitlines()]
    assert [line["type"] for line in lines] == ["task.started", "task.progressed"]
    assert lines[1]["progress"]["percent"] == 50.0


def test_mistakes_in_parameters_are_usage_errors(tunesmith: Callable[..., Result], server: Any) -> None:
    result = tunesmith("train", "--base-model", "m", "--dataset", "d", "--set", "lerning_rate=1", "--set", "seed=x")
    assert result.exit_code == 2
    assert "did you mean learning_rate" in result.stderr
    assert "seed: takes a number" in result.stderr
    result = tunesmith("train", "--base-model", "m", "--dataset", "d", "--set", "seed", "--set", "lora_r=")
    assert result.exit_code == 2
    assert result.stderr.count("write --set name=value") == 2
    words = ("--method", "full", "--set", "method=lora", "--set", "seed=1", "--set", "seed=2")
    result = tunesmith("train", "--base-model", "m", "--dataset", "d", *words)
    assert result.exit_code == 2
    assert "given twice" in result.stderr and "disagree" in result.stderr
    assert server.requests == []


def test_refusals(tunesmith: Callable[..., Result], server: Any) -> None:
    result = tunesmith("train", "--base-model", "m", "--dataset", "d", "--name", "")
    assert result.exit_code == 0  # an empty name becomes the default one
    result = tunesmith("tasks", "show", "nobody")
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == "Error: there is no task nobody\n"
    result = tunesmith("tasks", "list", "--token", "wrong")
    assert result.exit_code == 3
    assert tunesmith("tasks", "list", "--state", "sleeping").exit_code == 2
    assert tunesmith("tasks", "list", "--limit", "0").exit_code == 2


def test_list(tunesmith: Callable[..., Result], server: Any) -> None:
    assert tunesmith("tasks", "list").stdout == "no tasks\n"
    for number in range(1, 4):
        server.add_task(f"t{number}", "STATE_RUNNING", metrics={"loss": 1.23456}, progress={"percent": 10.0 * number})
    rows = tunesmith("tasks", "list", "--limit", "2").stdout.splitlines()
    assert len(rows) == 3
    assert all(word in rows[1] for word in ("t1", "running", "10 %", "1.235"))
    found = json.loads(tunesmith("tasks", "list", "--json").stdout)
    assert [task["name"] for task in found] == ["t1", "t2", "t3"]


def test_show(tunesmith: Callable[..., Result], server: Any) -> None:
    spec = {"finetune": {"base_model": "small", "training": {"learning_rate": 0.5}}}
    sources = {"finetune.training.learning_rate": "PARAMETER_SOURCE_USER"}
    error = {"reason": "DATASET_INVALID", "message": "bad lines", "problems": ["line 3: not JSON"]}
    task_id = server.add_task("t\x1b[31m", "STATE_FAILED", spec=spec, parameter_sources=sources, error=error)
    page = tunesmith("tasks", "show", task_id).stdout
    assert all(word in page for word in (task_id, "small", "line 3: not JSON", "1.0 MB"))
    assert "\x1b" not in page
    assert any(line.split() == ["training.learning_rate", "0.5", "user"] for line in page.splitlines())
    assert json.loads(tunesmith("tasks", "show", task_id, "--json").stdout)["error"]["problems"] == ["line 3: not JSON"]


def test_logs(tunesmith: Callable[..., Result], server: Any) -> None:
    task_id = server.add_task("t")
    assert tunesmith("tasks", "logs", task_id, "--tail", "2").stdout == "line 3\nline 4\n"
    server.events = [
        {"lines": [{"text": f"line {n}"} for n in range(4)]},
        {"lines": [{"text": "line 4"}, {"text": "5"}]},
    ]
    server.connections = [(1, "break"), (2, "end"), (2, "end")]
    assert tunesmith("tasks", "logs", "-f", task_id).stdout.splitlines() == [f"line {n}" for n in range(5)] + ["5"]
    assert tunesmith("tasks", "logs", "-f", "-n", "2", task_id).stdout.splitlines() == ["line 3", "line 4", "5"]


def test_stop_resume_delete(tunesmith: Callable[..., Result], server: Any) -> None:
    first, second = server.add_task("a", "STATE_RUNNING"), server.add_task("b", "STATE_RUNNING")
    assert tunesmith("tasks", "stop", first, second).stdout.splitlines() == [
        f"{first} stopping a",
        f"{second} stopping b",
    ]
    assert "stopped" in tunesmith("tasks", "stop", "--discard", first).stdout
    assert "pending" in tunesmith("tasks", "resume", first, "--step", "3").stdout
    assert server.requests[-1][3] == {"checkpoint_step": "3"}
    server.tasks[second]["state"] = "STATE_RUNNING"
    assert tunesmith("tasks", "delete", second).exit_code == 3
    result = tunesmith("tasks", "delete", "--force", second, "--json")
    assert json.loads(result.stdout) == {"id": second, "deleted": True}


def test_events_of_one_task(tunesmith: Callable[..., Result], server: Any) -> None:
    task_id = server.add_task("t")
    server.events = [STARTED, LOGGED, ended("completed")]
    server.connections = [(3, "end")]
    lines = tunesmith("events", task_id).stdout.splitlines()
    assert [line.split()[1] for line in lines] == ["task.started", "metrics.logged", "task.completed"]
    assert "step 5: loss 1.25" in lines[1]


def test_events_of_all_tasks(server: Any) -> None:
    server.events = [STARTED, LOGGED, SAVED]
    server.connections = [(2, "break"), (3, "hold")]
    environment = os.environ | {"TUNESMITH_URL": server.url, "TUNESMITH_TOKEN": "secret"}
    with subprocess.Popen(
        [COMMAND, "events", "--json"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        seen = [json.loads(process.stdout.readline())["type"] for _ in range(3)]
        assert seen == ["task.started", "metrics.logged", "checkpoint.saved"]
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
    assert [path for _, path, _, _ in server.requests] == ["/v1/tasks:watch"] * 2
    assert server.last_event_ids == ["", "2"]


def test_interrupted_watch_leaves_the_task_alone(server: Any) -> None:
    task_id = server.add_task("t", "STATE_RUNNING")
    server.events = [STARTED]
    server.connections = [(1, "hold")]
    environment = os.environ | {"TUNESMITH_URL": server.url, "TUNESMITH_TOKEN": "secret"}
    with subprocess.Popen([COMMAND, "tasks", "watch", task_id], env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert b"running" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=10)
        assert process.returncode == 130
    assert f"tunesmith tasks stop {task_id}" in output.decode()
    assert server.tasks[task_id]["state"] == "STATE_RUNNING"


def test_nothing_at_the_address(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["tasks", "list", "--url", "http://127.0.0.1:9"], env={"TUNESMITH_TOKEN": "x"})
    assert result.exit_code == 3
    assert "is the platform up" in result.stderr


def test_token_needs_a_key(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["token", "--user", "ann", "--expires", "soon", "--data-dir", str(tmp_path)])
    assert result.exit_code == 2
    assert "30d" in result.stderr


def test_help_names_every_parameter() -> None:
    assert PARAMETERS.split(", ") == parameter_names()


def test_help_is_quick_because_it_imports_little() -> None:
    code = "import sys; from typer.testing import CliRunner; from tunesmith.cli import app\n"
    code += "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
    code += (
        "heavy = {'httpx', 'google.protobuf', 'torch', 'grpc', 'asyncio'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


@pytest.mark.parametrize(
    ("given", "shown"),
    [("plain", "plain"), ("tab\there", "tab\there"), ("\x1b[31mred", "�[31mred"), ("a\u202eb", "a�b")],
)
def test_nothing_reaches_the_terminal_that_steers_it(given: str, shown: str) -> None:
    assert harmless(given) == shown


def test_bar_on_a_terminal_shows_rate_loss_and_remaining_time() -> None:
    output = StringIO()
    with TaskView(Console(file=output, force_terminal=True, width=120), "demo") as view:
        for second, step in enumerate((0, 10, 20)):
            progress = {"step": step, "total_steps": 100, "percent": step}
            view.show(ParseDict({"time": f"2026-01-01T00:00:0{second}Z", "progress": progress}, TaskEvent()))
        view.show(ParseDict({"metrics": {"points": [{"name": "loss", "step": 20, "value": 1.5}]}}, TaskEvent()))
    last = next(line for line in reversed(output.getvalue().splitlines()) if "demo" in line)
    assert all(word in last for word in ("demo", "20.0%", "20/100", "10.0 steps/s", "loss 1.5", "0:08 left")), last


def test_work_that_is_no_training_shows_its_phase_and_no_rate() -> None:
    view = TaskView(Console(file=StringIO()))
    task = {"state": "STATE_RUNNING", "spec": {"export": {}}}
    view.show(ParseDict({"time": "2026-01-01T00:00:00Z", "task": task}, TaskEvent()))
    for second, step in enumerate((10, 30)):
        progress = {"step": step, "total_steps": 100, "percent": step, "phase": "merging"}
        view.show(ParseDict({"time": f"2026-01-01T00:00:0{second}Z", "progress": progress}, TaskEvent()))
    assert view.detail() == "30/100  merging  0:02 left"


def test_rate_starts_anew_after_a_retry() -> None:
    rate = Rate()
    rate.update(10, 1.0)
    rate.update(20, 2.0)
    assert rate.value == 10
    assert rate.remaining(20, 40, 0) == "0:02"
    assert rate.remaining(20, 40, 3700) == "1:01:40"
    rate.update(5, 3.0)
    assert rate.value == 0
    assert rate.remaining(5, 40, 0) == ""
