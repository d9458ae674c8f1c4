"""Whole estimates on real small models and files: their sizes, what is refused, and in which words."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from modelkit import scratch
from modelkit.datasets import DatasetFiles
from trainer_service.devices import Device, cpu
from trainer_service.estimates import advice
from trainer_service.estimates.calibration import Calibration
from trainer_service.estimates.disk import Places
from trainer_service.estimates.estimator import Estimate, Estimator
from trainer_service.recipes.adapters import add_adapter, save_adapter
from trainer_service.recipes.config import Lora
from trainer_service.recipes.remedies import OUT_OF_MEMORY
from tunesmith.task.v1 import spec_pb2

GB = 10**9
Estimated = Callable[..., Estimate]


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("estimates") / "model"
    corpus = [Path(json.__file__).read_text()]
    return scratch.build(folder, family="llama", hidden_size=64, layers=2, vocab_size=320, corpus=corpus).directory


@pytest.fixture
def dataset(tmp_path: Path) -> DatasetFiles:
    rows = [{"instruction": f"Say {n}.", "output": "It is said. " * (1 + n % 3)} for n in range(50)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DatasetFiles(tmp_path / "train.jsonl")


def gpu(gigabytes: float, name: str = "0", free: float | None = None) -> Device:
    return Device(name, f"GPU {name}", "cuda", int(gigabytes * GB), int((gigabytes if free is None else free) * GB))


@pytest.fixture
def estimated(tmp_path: Path, small_model: Path, dataset: DatasetFiles) -> Estimated:
    """An estimate of a training with some settings, on some devices."""

    def estimate(
        method: str = "LORA",
        devices: list[Device] | None = None,
        named: str = "",
        free: int = 1000 * GB,
        **training: Any,
    ) -> Estimate:
        places = Places(tmp_path / "work", tmp_path / "out", tmp_path / "objects")
        calibration = Calibration(tmp_path / "calibration.json")
        estimator = Estimator(places, calibration, find_gpus=lambda: devices or [], free=lambda path: free)
        spec = spec_pb2.FinetuneSpec(
            base_model="m",
            training=spec_pb2.TrainingParameters(**training),
            language_model=spec_pb2.LanguageModelParameters(method=spec_pb2.Method.Value(f"METHOD_{method}")),
            devices=spec_pb2.DeviceRequest(cuda_visible_devices=named),
        )
        return estimator.estimate(spec, small_model, dataset, 50)

    return estimate


def test_steps_checkpoints_and_rows(estimated: Estimated) -> None:
    found = estimated(max_steps=1000, save_steps=100, save_total_limit=4)
    assert (found.steps.total, found.saved, found.kept, found.steps.rows) == (1000, 10, 4, 50)
    assert 0 < found.rows.mean <= found.rows.longest < 512
    assert found.device == cpu() or found.device.type == "cpu"
    assert found.fits_memory and found.fits_disk


def test_checkpoint_sizes_are_those_of_the_files(estimated: Estimated, small_model: Path, tmp_path: Path) -> None:
    """M1: within a twentieth of what safetensors and torch write for weights, moments and tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    auto: Any = AutoModelForCausalLM
    for method in ("FULL", "LORA"):
        folder = tmp_path / method
        folder.mkdir()
        model = auto.from_pretrained(small_model, dtype=torch.float32)
        if method == "LORA":
            model = add_adapter(model, Lora(), base_model=small_model)
            save_adapter(model, folder)
        else:
            model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(small_model).save_pretrained(folder)
        optimizer = torch.optim.AdamW([item for item in model.parameters() if item.requires_grad])
        for item in optimizer.param_groups[0]["params"]:
            item.grad = torch.zeros_like(item)
        optimizer.step()
        torch.save(optimizer.state_dict(), folder / "optimizer.pt")
        written = sum(path.stat().st_size for path in folder.iterdir())
        predicted = estimated(method).files.checkpoint
        assert abs(predicted - written) < 0.05 * written + (100 << 10), method


def test_the_emptiest_gpu_is_chosen(estimated: Estimated) -> None:
    """F27: one device, chosen by the worker, unless some are named."""
    devices = [gpu(24, "0", free=2), gpu(16, "1", free=15)]
    assert estimated(devices=devices).device.id == "1"
    assert estimated(devices=devices, named="0").device.id == "0"
    both = estimated(devices=devices, named="0,1")
    assert (both.device.id, both.run.processes) == ("1", 2)
    assert estimated().device.type == "cpu"


def test_too_little_memory_names_the_remedies_and_is_no_refusal(estimated: Estimated) -> None:
    """T27, fault 29: before training starts."""
    found = estimated("FULL", [gpu(0.1)])
    assert not found.fits_memory
    (note,) = advice.memory_notes(found)
    assert all(remedy in note for remedy in OUT_OF_MEMORY)
    assert "GPU 0 has 100.0 MB" in note
    assert advice.problems(found) == []
    assert list(advice.memory_notes(estimated("LORA", [gpu(24)]))) == []
    (note,) = advice.memory_notes(estimated("LORA", [gpu(24, free=0.1)]))
    assert "are free now" in note


def test_qlora_is_advised_where_lora_leaves_little_room(estimated: Estimated) -> None:
    """T21: below 16 GB, and for models of 13B and more on a GPU for the home."""

    def advised(method: str, gigabytes: float, parameters: int = 0) -> bool:
        found = estimated(method, [gpu(gigabytes)])
        if parameters:
            found = replace(found, run=replace(found.run, parameters=parameters))
        return any("QLoRA is advised" in note for note in advice.notes(found))

    assert advised("LORA", 1)
    assert not advised("LORA", 15)
    assert advised("LORA", 24, parameters=13_000_000_000)
    assert not advised("LORA", 80, parameters=13_000_000_000)
    assert not advised("QLORA", 1)


def test_weights_that_do_not_fit_are_refused(estimated: Estimated) -> None:
    (problem,) = advice.problems(estimated("FULL", [gpu(0.0001)]))
    assert problem.field == "finetune.language_model.method"
    assert "the weights alone take" in problem.message
    assert "use a smaller base model" in problem.message


def test_a_disk_that_is_too_small_is_refused_with_figures(estimated: Estimated) -> None:
    """Fault 25, M22: what is needed, what is free, and how many checkpoints could be kept."""
    settings: dict[str, Any] = {"max_steps": 100, "save_steps": 1}
    whole = estimated("FULL", **settings)
    size = whole.files.checkpoint
    free = whole.room.needed - 90 * size
    found = estimated("FULL", free=free, **settings)
    (problem,) = advice.problems(found)
    assert problem.field == "finetune.training.save_total_limit"
    assert f"{advice.size(found.room.needed)} are needed" in problem.message
    assert f"{advice.size(free)} are free" in problem.message
    limit = found.largest_limit()
    assert f"Keep at most {limit} (save_total_limit)" in problem.message
    assert advice.problems(estimated("FULL", free=free, save_total_limit=limit, **settings)) == []
    assert advice.problems(estimated("FULL", free=free, save_total_limit=limit + 1, **settings))


def test_a_disk_without_room_for_one_checkpoint(estimated: Estimated) -> None:
    found = estimated("FULL", free=1000, max_steps=100)
    (problem,) = advice.problems(found)
    assert problem.field == "finetune.training.save_steps"
    assert "use LoRA" in problem.message
    assert not found.fits_disk
    assert problem.message in advice.notes(found)


def test_duration_rests_on_earlier_runs(estimated: Estimated, tmp_path: Path) -> None:
    first = estimated(max_steps=100)
    assert (first.seconds, first.steps_per_second) == (0.0, 0.0)
    assert any("no training like this" in note for note in advice.notes(first))
    Calibration(tmp_path / "calibration.json").record(replace(first.run, steps_per_second=4.0))
    second = estimated(max_steps=100)
    assert second.seconds == pytest.approx(25.0)
    minutes = estimated(max_steps=4800, save_interval_minutes=1, save_steps=4800)
    assert minutes.saved == 20


def test_the_service_estimates_without_a_training_library() -> None:
    """It answers beside a training, so what the recipes load would be there twice."""
    modules = "trainer_service.estimates.answer, trainer_service.estimates.checked"
    code = f"import sys, {modules}; heavy = {{'torch', 'transformers'}} & set(sys.modules); assert not heavy, heavy"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=50)
