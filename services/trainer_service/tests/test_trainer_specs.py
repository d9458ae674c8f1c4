"""Specifications are checked as a whole, with every problem at its field (T20, M22, M28)."""

import os
from pathlib import Path
from typing import Any

import pytest

from modelkit.base_models import BaseModels
from modelkit.datasets import DataCache
from modelkit.paths import AllowedRoots
from servicekit.grpc_client import bearer
from services.trainer_service.tests.bench import MakeSpec
from services.trainer_service.tests.trainer_stub import Stub, check, peer, stub, turns, uploads, write
from trainer_service.checks import SpecChecks
from trainer_service.devices import gpus
from tunesmith.task.v1 import spec_pb2
from tunesmith.trainer.v1 import trainer_service_pb2 as trainer
from workerkit.datasets import DatasetChecks

__all__ = ["peer", "stub", "turns", "uploads"]


async def test_a_sound_specification_has_no_problems(stub: Stub, make_spec: MakeSpec, tmp_path: Path) -> None:
    assert await check(stub, make_spec({})) == {}
    assert await check(stub, make_spec({}, output_dir=str(tmp_path / "data" / "new" / "deep"))) == {}
    assert await check(stub, make_spec({}, base_model="task:01abc")) == {}
    (tmp_path / "data" / "hollow").mkdir()
    assert await check(stub, make_spec({}, output_dir=str(tmp_path / "data" / "hollow"))) == {}


async def test_early_stopping_needs_rows_to_look_at(stub: Stub, make_spec: MakeSpec) -> None:
    """Evaluations where there are validation rows are nothing to stop by where there are none."""
    spec = make_spec({}, training=spec_pb2.TrainingParameters(eval_strategy=spec_pb2.INTERVAL_STRATEGY_AUTO))
    assert not await check(stub, spec)
    spec.training.early_stopping_patience = 2
    assert set(await check(stub, spec)) == {"finetune.training.eval_strategy"}


async def test_a_model_without_a_tokenizer_takes_another(stub: Stub, make_spec: MakeSpec, model: Path) -> None:
    """M28: the directory's own tokenizer is optional."""
    spec = make_spec({})
    other = model.parent / "tokenizer"
    other.mkdir()
    (model / "tokenizer.json").rename(other / "tokenizer.json")
    assert "no tokenizer" in (await check(stub, spec))["finetune.base_model"]
    spec.language_model.tokenizer_path = str(other)
    assert await check(stub, spec) == {}
    spec.language_model.tokenizer_path = str(model)
    assert set(await check(stub, spec)) == {"finetune.language_model.tokenizer_path"}


async def test_every_problem_of_a_specification_is_told_at_once(
    stub: Stub, make_spec: MakeSpec, tmp_path: Path
) -> None:
    gguf = tmp_path / "data" / "gguf"
    gguf.mkdir()
    (gguf / "model.gguf").write_bytes(b"GGUF")
    spec = make_spec({}, base_model=str(gguf), output_dir="/usr/local/model")
    write(Path(spec.dataset.path), {"question": "only"})
    spec.devices.cuda_visible_devices = "62,62"
    spec.training.optim, spec.training.lr_scheduler_type = "magic", "zigzag"
    problems = await check(stub, spec)
    assert set(problems) == {
        "finetune.base_model",
        "finetune.dataset.path",
        "finetune.output_dir",
        "finetune.devices.cuda_visible_devices",
        "finetune.training.optim",
        "finetune.training.lr_scheduler_type",
    }
    assert "GGUF" in problems["finetune.base_model"]
    assert "outside the allowed directories" in problems["finetune.output_dir"]


@pytest.mark.parametrize(
    ("make_target", "words"),
    [
        (lambda root: root, "an allowed directory itself"),
        (lambda root: root / "model" / "inside", ""),
        (lambda root: root / "model", "is not empty"),
        (lambda root: root / "model" / "config.json" / "deeper", "is not a directory"),
        (lambda root: root / "model" / "config.json", "is not a directory"),
        (lambda root: root / "link", "outside the allowed directories"),
        (lambda root: root / ".." / "elsewhere", "outside the allowed directories"),
    ],
)
async def test_output_directories(
    stub: Stub, make_spec: MakeSpec, tmp_path: Path, make_target: Any, words: str
) -> None:
    (tmp_path / "data" / "link").symlink_to("/usr/local")
    problems = await check(stub, make_spec({}, output_dir=str(make_target(tmp_path / "data"))))
    assert words in problems.get("finetune.output_dir", "")
    assert bool(problems) == bool(words)


def test_an_output_below_a_read_only_directory_is_refused(
    make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 28, at submit; whoever runs the tests may be allowed to write everywhere."""
    closed, access = tmp_path / "data" / "closed", os.access
    closed.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != closed and access(path, mode))
    roots = AllowedRoots([tmp_path / "data"])
    checks = SpecChecks(roots, BaseModels(roots), DatasetChecks(DataCache(tmp_path / "cache")))
    spec = make_spec({}, output_dir=str(closed / "new" / "model"))
    (problem,) = checks.check(spec_pb2.TaskSpec(finetune=spec)).problems
    assert (problem.field, problem.message) == ("finetune.output_dir", f"{closed} cannot be written to")


def test_quantization_without_effect_is_refused_of_new_tasks_alone(make_spec: MakeSpec, tmp_path: Path) -> None:
    """A task that was accepted before trains as it did, and says so in its log."""
    roots = AllowedRoots([tmp_path / "data"])
    checks = SpecChecks(roots, BaseModels(roots), DatasetChecks(DataCache(tmp_path / "cache")))
    spec = make_spec({})
    spec.language_model.method = spec_pb2.METHOD_LORA
    spec.language_model.quantization.type = "nf4"
    task = spec_pb2.TaskSpec(finetune=spec)
    new, stored = checks.check(task), checks.check(task, task_id="before")
    fields_ = [[problem.field for problem in found] for found in (new.problems, new.warnings)]
    assert fields_ == [["finetune.language_model.quantization"], []]
    assert (stored.problems, stored.warnings) == ([], new.problems)


@pytest.mark.parametrize("cpu_fallback", [False, True])
def test_named_gpus_without_any(make_spec: MakeSpec, tmp_path: Path, cpu_fallback: bool) -> None:
    roots = AllowedRoots([tmp_path / "data"])
    checks = SpecChecks(
        roots, BaseModels(roots), DatasetChecks(DataCache(tmp_path / "cache")), cpu_fallback=cpu_fallback
    )
    spec = make_spec({}, devices=spec_pb2.DeviceRequest(cuda_visible_devices="60"))
    problems = [problem.field for problem in checks.check(spec_pb2.TaskSpec(finetune=spec)).problems]
    accepted = cpu_fallback and not gpus()
    assert problems == ([] if accepted else ["finetune.devices.cuda_visible_devices"])


async def test_a_tokenizer_may_not_lead_out_of_the_allowed_directories(
    stub: Stub, make_spec: MakeSpec, tmp_path: Path
) -> None:
    """Fault 44: its chat template is saved with the model, so that a link would show any file."""
    folder = tmp_path / "data" / "tokenizer"
    (folder / "additional_chat_templates").mkdir(parents=True)
    (folder / "tokenizer.json").write_text("{}")
    spec = make_spec({})
    spec.language_model.tokenizer_path = str(folder)
    assert "finetune.language_model.tokenizer_path" not in await check(stub, spec)
    (folder / "chat_template.jinja").symlink_to("/etc/passwd")
    (folder / "additional_chat_templates" / "tools.jinja").symlink_to("/etc/hosts")
    found = await check(stub, spec)
    assert found["finetune.language_model.tokenizer_path"].startswith("chat_template.jinja, tools.jinja: links")


async def test_a_specification_is_checked_with_the_eyes_of_the_caller(
    stub: Stub, make_spec: MakeSpec, tmp_path: Path
) -> None:
    """Fault 53: somebody else's dataset is not there, and nothing in it is told."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "upload.jsonl").write_text("a secret\n")
    spec = make_spec({})
    spec.dataset.dataset_id = "d1"
    request = trainer.CheckSpecRequest(spec=spec_pb2.TaskSpec(finetune=spec))
    (problem,) = (await stub.CheckSpec(request, metadata=bearer("stranger"))).problems
    assert problem.message == "there is no dataset 'd1'"
    found = (await stub.CheckSpec(request, metadata=bearer("owner"))).problems
    assert found
    assert "there is no dataset" not in str(found)


async def test_a_disk_that_cannot_take_the_checkpoints_is_a_problem_of_the_specification(
    stub: Stub, make_spec: MakeSpec
) -> None:
    """Fault 25, M22: refused at submit, with the figures and what would fit."""
    spec = make_spec({})
    spec.training.max_steps, spec.training.save_steps = 1_000_000_000, 1
    problems = await check(stub, spec)
    assert set(problems) == {"finetune.training.save_total_limit"}
    assert "are needed in" in problems["finetune.training.save_total_limit"]
    spec.training.save_total_limit = 5
    assert await check(stub, spec) == {}
