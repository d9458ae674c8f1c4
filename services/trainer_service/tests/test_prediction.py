"""What a worker tells of a training before it starts, what it refuses, and what it learns from the run."""

import json
from pathlib import Path
from typing import Any

import pytest

from services.trainer_service.tests.bench import Bench, MakeSpec
from services.workerkit.tests.desk import Desk, payloads
from trainer_service.devices import Device
from trainer_service.estimates.calibration import Calibration
from trainer_service.estimates.disk import Places
from trainer_service.estimates.estimator import Estimator
from trainer_service.recipes.remedies import OUT_OF_MEMORY
from trainer_service.worker.job import Job
from tunesmith.task.v1 import spec_pb2

SMALL = 1000


def estimator(root: Path, **more: Any) -> Estimator:
    places = Places(root / "work", root / "outputs", root / "objects")
    return Estimator(places, Calibration(root / "calibration.json"), **more)


def processor(memory: int) -> Device:
    return Device("cpu", "Small processor", "cpu", memory, memory, 1)


async def test_predicted_memory_is_recorded_and_the_pace_is_learnt(
    bench: Bench, desk: Desk, make_spec: MakeSpec, tmp_path: Path
) -> None:
    spec = make_spec({"steps": 30})
    task_id = await desk.submit(spec)
    async with bench.worker():
        received = await desk.facts_until(task_id, "completed")
        log = await desk.log(task_id)
    points = {point.name: point for batch in payloads(received, "metrics") for point in batch.points}
    predicted = points["memory_predicted_bytes"]
    assert predicted.step == 0
    assert predicted.value > 100 << 20
    assert any(line.startswith("predicted memory: ") and "optimiser" in line for line in log)
    (run,) = Calibration(tmp_path / "calibration.json").runs()
    assert (run.method, run.parameters) == ("FULL", 2)
    assert run.steps_per_second > 0


async def test_too_little_memory_is_said_before_training_starts(
    bench: Bench, desk: Desk, make_spec: MakeSpec, tmp_path: Path
) -> None:
    """T27, fault 29: the remedies stand in the log, and the training is tried all the same."""
    bench.estimator = estimator(tmp_path, find_gpus=list, find_cpu=lambda: processor(10 << 20))
    task_id = await desk.submit(make_spec({}))
    async with bench.worker():
        await desk.facts_until(task_id, "completed")
        log = await desk.log(task_id)
    (warning,) = [line for line in log if line.startswith("warning: ")]
    assert all(remedy in warning for remedy in OUT_OF_MEMORY)


async def test_a_stored_task_whose_quantization_has_no_effect_trains_with_a_warning(
    bench: Bench, desk: Desk, make_spec: MakeSpec
) -> None:
    spec = make_spec({})
    spec.language_model.method = spec_pb2.METHOD_FULL
    spec.language_model.quantization.type = "nf4"
    task_id = await desk.submit(spec)
    async with bench.worker():
        await desk.facts_until(task_id, "completed")
        log = await desk.log(task_id)
    assert any(line.startswith("warning: finetune.language_model.quantization: ") for line in log)


async def test_a_disk_that_filled_up_since_the_submit_fails_before_training(
    bench: Bench, desk: Desk, make_spec: MakeSpec, tmp_path: Path
) -> None:
    """Fault 25."""
    bench.estimator = estimator(tmp_path, free=lambda path: SMALL)
    task_id = await desk.submit(make_spec({}))
    async with bench.worker():
        received = await desk.facts_until(task_id, "failed")
    error = payloads(received, "failed")[0].error
    assert error.reason == "DISK_FULL"
    assert "1.0 kB are free" in error.message
    assert not payloads(received, "child_started")


@pytest.mark.parametrize("steps", [2, 40])
async def test_only_runs_of_some_length_say_how_fast_the_machine_is(
    bench: Bench, desk: Desk, make_spec: MakeSpec, tmp_path: Path, steps: int
) -> None:
    task_id = await desk.submit(make_spec({"steps": steps}))
    async with bench.worker():
        await desk.facts_until(task_id, "completed")
    assert len(Calibration(tmp_path / "calibration.json").runs()) == (steps == 40)


def test_job_file_has_the_prediction(tmp_path: Path) -> None:
    Job(tmp_path, spec_pb2.FinetuneSpec(), Path("/m"), Path("/t"), predicted_memory_bytes=5).write()
    assert json.loads((tmp_path / "job.json").read_text())["predicted_memory_bytes"] == 5
