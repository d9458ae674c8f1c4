"""Commands that ask before a training starts, and those about data and templates, against a real HTTP server."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.testing import Result

DATASET = {
    "id": "01ks9zw4t0d3rka2ykxw7v9e1m",
    "name": "qa",
    "version": 2,
    "type": "llm",
    "size": "2048",
    "samples": "7",
    "format": "messages",
    "file_name": "qa.jsonl",
}
ESTIMATE = {
    "memory_bytes": "16000000000",
    "memory_total_bytes": "24000000000",
    "disk_bytes": "3000000000",
    "disk_free_bytes": "90000000000",
    "checkpoint_bytes": "100000000",
    "checkpoints": "10",
    "checkpoints_kept": "3",
    "total_steps": "1000",
    "rows": "4000",
    "duration_seconds": 500,
    "steps_per_second": 2,
    "memory": {"weights": "13000000000", "activations": "1000000000"},
    "methods": [
        {"method": "METHOD_FULL", "memory_bytes": "120000000000"},
        {"method": "METHOD_LORA", "memory_bytes": "16000000000", "fits": True},
    ],
    "fits": True,
    "notes": ["rows have 90 tokens on average"],
}
QUOTA = {"quota": {"user": "ann", "monthly_allowance": "100", "used": "95", "remaining": "5", "low": True}}
TEMPLATE = {
    "id": "builtin-sft",
    "name": "Supervised",
    "version": 3,
    "type": "sft",
    "builtin": True,
    "default_of_type": True,
    "spec": {"training": {"learning_rate": 0.5, "seed": 7}, "language_model": {"lora": {"r": 16}}},
}
Tunesmith = Callable[..., Result]


def test_estimate(tunesmith: Tunesmith, server: Any) -> None:
    server.answers = {"POST /v1/estimates": ESTIMATE | QUOTA}
    words = ("--base-model", "m", "--dataset", "d", "--method", "lora", "--set", "save_steps=100")
    result = tunesmith("estimate", *words)
    assert result.exit_code == 0, result.output
    sent = server.requests[0][3]["spec"]
    assert sent["training"] == {"save_steps": 100}
    assert sent["language_model"] == {"method": "METHOD_LORA"}
    for expected in (
        "16.0 GB of 24.0 GB",
        "weights 13.0 GB",
        "full 120.0 GB (does not fit); lora 16.0 GB",
        "10 saved, 3 kept, 100.0 MB each",
        "95 of 100 used this month, 5 left, nearly spent",
        "1000 on 4000 rows",
        "8:20 (2.00 steps/s)",
        "rows have 90 tokens on average",
        "it fits",
    ):
        assert expected in result.stdout
    assert json.loads(tunesmith("estimate", *words, "--json").stdout)["total_steps"] == "1000"


def test_estimate_that_does_not_fit_and_has_no_quota(tunesmith: Tunesmith, server: Any) -> None:
    server.answers = {"POST /v1/estimates": {"fits": False, "notes": ["use QLoRA"]}}
    result = tunesmith("estimate", "--base-model", "m", "--dataset", "d")
    assert result.exit_code == 1
    assert "use QLoRA" in result.stdout and "it does not fit" in result.stdout


def test_estimate_of_a_template(tunesmith: Tunesmith, server: Any) -> None:
    server.answers = {"POST /v1/estimates": ESTIMATE, "GET /v1/templates/builtin-sft": {"template": TEMPLATE}}
    words = ("--base-model", "m", "--dataset", "d", "--template", "builtin-sft", "--set", "seed=8")
    assert tunesmith("estimate", *words).exit_code == 0
    sent = server.requests[1][3]["spec"]
    assert sent["training"] == {"learning_rate": 0.5, "seed": 8}
    assert sent["language_model"]["lora"] == {"r": 16}


def test_train_with_objective_template_and_upload(tunesmith: Tunesmith, server: Any) -> None:
    words = ("--base-model", "m", "--dataset-id", DATASET["id"], "--objective", "pretrain", "--template", "builtin-x")
    result = tunesmith("train", *words, "--set", "text_column=body", "--set", "labels=a,b")
    assert result.exit_code == 0, result.output
    body = server.requests[0][3]
    assert body["template_id"] == "builtin-x"
    assert body["name"].startswith("pretrain_")
    assert body["spec"]["finetune"]["dataset"] == {"dataset_id": DATASET["id"], "columns": {"text": "body"}}
    parameters = body["spec"]["finetune"]["language_model"]
    assert parameters == {"objective": "OBJECTIVE_PRETRAINING", "labels": ["a", "b"]}


def test_data_must_be_given_once(tunesmith: Tunesmith, server: Any) -> None:
    for words in ((), ("--dataset", "d", "--dataset-id", "x")):
        result = tunesmith("train", "--base-model", "m", *words)
        assert result.exit_code == 2
        assert "give the data once" in result.stderr
    result = tunesmith("train", "--base-model", "m", "--objective", "sft", "--set", "objective=pretraining")
    assert result.exit_code == 2
    assert "disagree" in result.stderr and "give the data once" in result.stderr
    assert server.requests == []


def test_environment(tunesmith: Tunesmith, server: Any) -> None:
    checks = [
        {"name": "torch", "ok": True, "found": "2.15"},
        {"name": "scratch space", "ok": False, "found": "1 GiB", "advice": "free some"},
    ]
    server.answers = {"GET /v1/environment": {"checks": checks}}
    result = tunesmith("environment")
    assert result.exit_code == 1
    assert "free some" in result.stdout and "not ready to train" in result.stdout
    server.answers = {"GET /v1/environment": {"checks": checks[:1], "ready": True}}
    assert tunesmith("environment").exit_code == 0
    assert json.loads(tunesmith("environment", "--json").stdout)["ready"] is True


def test_quota(tunesmith: Tunesmith, server: Any) -> None:
    unlimited = {"quota": {"user": "bob", "monthly_allowance": "-1", "used": "4", "remaining": "-1"}}
    server.answers = {"GET /v1/quota": QUOTA, "POST /v1/quota": unlimited}
    assert "95 of 100 used this month, 5 left, nearly spent" in tunesmith("quota").stdout
    result = tunesmith("quota", "--user", "bob", "--set", "-1", "--when-spent", "stop")
    assert "4 used this month, unlimited" in result.stdout
    expected = {"user": "bob", "monthly_allowance": "-1", "exhausted_action": "QUOTA_ACTION_STOP"}
    assert server.requests[-1][3] == expected
    assert tunesmith("quota", "--set", "5").exit_code == 2
    assert tunesmith("quota", "--when-spent", "stop").exit_code == 2
    assert json.loads(tunesmith("quota", "--json").stdout)["remaining"] == "5"


def test_parameters(tunesmith: Tunesmith, server: Any) -> None:
    rate = {
        "name": "learning_rate",
        "label_en": "Learning rate",
        "label_zh": "学习率",
        "category": "training",
        "type": "number",
        "default_value": 0.0002,
        "minimum": 0,
        "minimum_excluded": True,
        "maximum": 1,
        "advice_zh": "小模型取大值",
    }
    method = {"name": "method", "label_en": "Method", "type": "choice", "choices": ["full", "lora"], "required": True}
    server.answers = {"GET /v1/parameters": {"parameters": [rate, method]}}
    lines = tunesmith("parameters", "--surface", "studio", "--objective", "sft").stdout.splitlines()
    assert lines[1].split() == [
        "learning_rate",
        "Learning",
        "rate",
        "training",
        "0.0002",
        "number",
        ">",
        "0,",
        "<=",
        "1",
    ]
    assert "required" in lines[2] and "full, lora" in lines[2]
    assert "surface=studio" in server.requests[0][1] and "objective=sft" in server.requests[0][1]
    chinese = tunesmith("parameters", "--lang", "zh", "--advice").stdout
    assert "学习率" in chinese and "小模型取大值" in chinese
    assert len(json.loads(tunesmith("parameters", "--json").stdout)) == 2


def test_base_models(tunesmith: Tunesmith, server: Any) -> None:
    models = [{"id": "a/b", "family": "llama", "vram_gb": 16}, {"id": "/m", "local": True}]
    server.answers = {"GET /v1/base-models": {"models": models}}
    shown = tunesmith("models", "list").stdout
    assert "a/b" in shown and "16 GB" in shown
    assert [model["id"] for model in json.loads(tunesmith("models", "list", "--local", "--json").stdout)] == ["/m"]
    server.answers = {"GET /v1/base-models": {}}
    assert tunesmith("models", "list").stdout == "no models\n"


def test_upload(tunesmith: Tunesmith, server: Any, tmp_path: Path) -> None:
    server.answers = {"POST /v1/datasets": {"dataset": DATASET}}
    server.faults = [503]
    file = tmp_path / "qa.jsonl"
    file.write_bytes(b'{"a": 1}\n' * 3)
    result = tunesmith("datasets", "upload", str(file), "--name", "qa")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{DATASET['id']} qa version 2, 7 rows\n"
    first, second = server.requests
    assert first[3] == second[3] == file.read_bytes()
    assert "name=qa" in second[1] and "file_name=qa.jsonl" in second[1]
    server.answers = {"POST /v1/datasets": {"dataset": DATASET | {"problems": ["line 2: not JSON"]}}}
    result = tunesmith("datasets", "upload", str(file))
    assert result.exit_code == 1
    assert "  - line 2: not JSON" in result.stdout
    assert tunesmith("datasets", "upload", str(tmp_path)).exit_code == 2
    assert "does not exist" in tunesmith("datasets", "upload", str(tmp_path / "none")).stderr


def test_datasets(tunesmith: Tunesmith, server: Any) -> None:
    path = f"/v1/datasets/{DATASET['id']}"
    server.answers = {
        "GET /v1/datasets": {"datasets": [DATASET, DATASET | {"problems": ["x"]}]},
        f"GET {path}": {"dataset": DATASET},
        f"DELETE {path}": {},
    }
    rows = tunesmith("datasets", "list").stdout.splitlines()
    assert DATASET["id"] in rows[1] and "1 problems" in rows[2]
    assert len(json.loads(tunesmith("datasets", "list", "--limit", "1", "--json").stdout)) == 1
    assert "qa, version 2" in tunesmith("datasets", "show", str(DATASET["id"])).stdout
    assert tunesmith("datasets", "delete", str(DATASET["id"])).stdout == f"{DATASET['id']} deleted\n"
    server.answers = {"GET /v1/datasets": {}}
    assert tunesmith("datasets", "list").stdout == "no datasets\n"


def test_check_of_data(tunesmith: Tunesmith, server: Any, tmp_path: Path) -> None:
    problem = {"file": "t.jsonl", "message": "not JSON", "hint": "fix it", "count": "9", "first_lines": ["2", "4"]}
    server.answers = {"POST /v1/datasets:validate": {"rows": "5", "format": "messages", "problems": [problem]}}
    (tmp_path / "t.jsonl").touch()
    result = tunesmith("datasets", "check", str(tmp_path / "t.jsonl"))
    assert result.exit_code == 1
    assert "5 rows can be trained on, form messages" in result.stdout
    assert "t.jsonl: not JSON (9 lines: 2, 4, ...); fix it" in result.stdout
    assert server.requests[0][3]["dataset"] == {"path": str(tmp_path / "t.jsonl")}
    server.answers = {"POST /v1/datasets:validate": {"valid": True}}
    assert tunesmith("datasets", "check", "d", "--json").exit_code == 0


def test_report_on_data(tunesmith: Tunesmith, server: Any) -> None:
    report = {
        "valid": True,
        "format": "messages",
        "rows": {"train": "90", "validation": "10"},
        "exact_duplicates": "3",
        "near_duplicates": "2",
        "overlapping_rows": "1",
        "lengths": {"mean": 80.4, "max": "600", "truncated_share": 0.05, "upper": ["64", "128"], "rows": ["20", "70"]},
        "samples": [{"pieces": [{"text": "What?\n"}, {"text": "That.\x1b[31m", "trained": True}]}],
        "advice": ["remove duplicates"],
    }
    server.answers = {"POST /v1/datasets:report": report}
    result = tunesmith("datasets", "report", "d", "--base-model", "m", "--objective", "pretrain", "--rows", "1")
    assert result.exit_code == 0, result.output
    for expected in (
        "train 90, validation 10",
        "3 exact, 2 near",
        "mean 80, ",
        "5.0% of rows",
        "> What?\\n«That.�[31m»",
        "* remove duplicates",
        "#" * 40,
    ):
        assert expected in result.stdout
    assert "\x1b" not in result.stdout
    sent = server.requests[0][3]
    assert (sent["objective"], sent["preview_rows"], sent["base_model"]) == ("OBJECTIVE_PRETRAINING", 1, "m")


def test_templates(tunesmith: Tunesmith, server: Any) -> None:
    server.answers = {
        "GET /v1/templates": {"templates": [TEMPLATE]},
        "GET /v1/templates/builtin-sft": {"template": TEMPLATE},
        "POST /v1/templates": {"template": TEMPLATE | {"id": "t1", "name": "mine", "version": 1}},
        "DELETE /v1/templates/t1": {},
    }
    assert "built in, default" in tunesmith("templates", "list").stdout
    shown = tunesmith("templates", "show", "builtin-sft").stdout
    assert any(line.split() == ["training.learning_rate", "0.5"] for line in shown.splitlines())
    words = ("--set", "learning_rate=1e-4", "--method", "qlora", "--description", "for tests")
    assert tunesmith("templates", "save", "mine", *words).stdout == "t1 mine version 1\n"
    sent = server.requests[-1][3]
    expected = {"training": {"learning_rate": 0.0001}, "language_model": {"method": "METHOD_QLORA"}}
    assert {name: sent["spec"].get(name) for name in expected} == expected
    assert sent["spec"].get("dataset", {}) == {} and "base_model" not in sent["spec"]
    assert tunesmith("templates", "delete", "t1").stdout == "t1 deleted\n"
    assert tunesmith("templates", "save", "mine", "--set", "magic=1").exit_code == 2
