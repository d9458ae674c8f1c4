"""What somebody at a terminal asks before a training starts, on a whole platform, and what the run says afterwards."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.support.platform import Platform, Workload
from tunesmith.cli import app
from tunesmith.client import Client
from tunesmith.task.v1.spec_pb2 import METHOD_LORA
from tunesmith.task.v1.task_pb2 import STATE_COMPLETED

Tunesmith = Callable[..., Any]


@pytest.fixture
def tunesmith(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> Tunesmith:
    """Runs a command with --json as the administrator; its document."""
    monkeypatch.setenv("TUNESMITH_URL", platform.url)
    monkeypatch.setenv("TUNESMITH_TOKEN", platform.token())
    platform.wait_healthy()

    def run(*words: str, code: int = 0) -> Any:
        result: Result = CliRunner().invoke(app, [*words, "--json"])
        assert result.exit_code == code, result.output
        return json.loads(result.stdout)

    return run


def test_estimate_and_run(tunesmith: Tunesmith, client: Client, workload: Workload) -> None:
    """T20, M1, M23: figures before the start; the run records predicted and measured peak, and its speed."""
    words = ("--base-model", str(workload.model), "--dataset", str(workload.dataset), "--method", "lora")
    settings = ("--set", "max_steps=1000", "--set", "save_steps=100", "--set", "max_seq_length=128")
    found = tunesmith("estimate", *words, *settings, "--set", "per_device_train_batch_size=8")
    assert (found["total_steps"], found["checkpoints"], found["rows"]) == ("1000", "10", "96")
    assert found["fits"] is True
    assert {item["method"] for item in found["methods"]} == {"METHOD_FULL", "METHOD_LORA", "METHOD_QLORA"}

    task_id = client.tasks.create(workload.request("measured", method=METHOD_LORA, max_steps=12, save_steps=100)).id
    assert client.tasks.wait(task_id).state == STATE_COMPLETED
    names = ("memory_predicted_bytes", "memory_peak_bytes")
    metrics = {series.name: series.values[-1] for series in client.tasks.metrics(task_id, names)}
    assert 0.25 <= metrics["memory_predicted_bytes"] / metrics["memory_peak_bytes"] <= 4
    log = [line.text for line in client.tasks.logs(task_id).lines]
    assert any(line.startswith("predicted memory: ") for line in log)

    known = tunesmith("estimate", *words, *settings, "--set", "per_device_train_batch_size=8")
    assert known["duration_seconds"] > 0
    assert known["steps_per_second"] > 0


def test_a_training_that_its_disk_cannot_take_is_refused_at_submit(tunesmith: Tunesmith, workload: Workload) -> None:
    """Fault 25, M22."""
    words = ("--base-model", str(workload.model), "--dataset", str(workload.dataset), "--method", "full")
    too_many = ("--set", "max_steps=100000000", "--set", "save_steps=1")
    assert tunesmith("estimate", *words, *too_many, code=1)["fits"] is False
    result = CliRunner().invoke(app, ["train", *words, *too_many])
    assert result.exit_code == 2
    assert "training.save_total_limit" in result.stderr
    assert "are needed in" in result.stderr and "are free" in result.stderr


def test_environment(tunesmith: Tunesmith) -> None:
    """M2."""
    found = tunesmith("environment")
    assert found["ready"] is True
    checks = {check["name"]: check for check in found["checks"]}
    assert {"torch", "bitsandbytes", "tensorboard", "memory", "scratch space", "training step"} <= set(checks)
    assert all(check["found"] for check in checks.values())


def test_upload_estimate_template_and_quota(tunesmith: Tunesmith, workload: Workload) -> None:
    """M24, M35: data by its id, parameters by their template, the allowance beside the estimate."""
    dataset = tunesmith("datasets", "upload", str(workload.dataset), "--name", "asked-before")
    assert dataset["samples"] == "96"
    assert dataset["id"] in [item["id"] for item in tunesmith("datasets", "list", "--name", "asked-before")]
    template = tunesmith("templates", "save", "asked-before", "--method", "lora", "--set", "max_steps=40")
    words = ("--base-model", str(workload.model), "--dataset-id", dataset["id"], "--template", template["id"])
    found = tunesmith("estimate", *words)
    assert (found["total_steps"], found["rows"]) == ("40", "96")
    assert int(tunesmith("quota")["monthly_allowance"]) >= -1
    assert tunesmith("datasets", "check", str(workload.dataset))["valid"] is True
    assert tunesmith("datasets", "delete", dataset["id"])["deleted"] is True
    assert tunesmith("templates", "delete", template["id"])["deleted"] is True
    assert len(tunesmith("parameters", "--surface", "studio")) > 40
    assert str(workload.model) in [model["id"] for model in tunesmith("models", "list", "--local")]


def test_another_users_upload_is_not_estimated(platform: Platform, tunesmith: Tunesmith, workload: Workload) -> None:
    """Faults 53: there is no such dataset for whoever does not own it."""
    dataset = tunesmith("datasets", "upload", str(workload.dataset), "--name", "private")
    words = ("--base-model", str(workload.model), "--dataset-id", dataset["id"])
    tunesmith("estimate", *words)
    token = CliRunner().invoke(app, ["token", "--user", "mallory", "--data-dir", str(platform.data_dir)]).stdout.strip()
    result = CliRunner().invoke(app, ["estimate", *words, "--token", token])
    assert result.exit_code != 0
    assert result.stdout == ""  # no figure of theirs
    assert dataset["id"] in result.stderr
    tunesmith("datasets", "delete", dataset["id"])
