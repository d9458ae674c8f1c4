"""Which devices a job gets, and what it is told of them (F4)."""

import json
from pathlib import Path

import pytest

from trainer_service.devices import Device, DevicePool
from trainer_service.worker.job import Job
from tunesmith.task.v1 import spec_pb2


def gpu(name: str, free: int) -> Device:
    return Device(name, "GPU", "cuda", 80, free)


def test_two_tasks_at_once_get_different_gpus() -> None:
    pool = DevicePool(lambda: [gpu("0", 10), gpu("1", 70), gpu("2", 40)])
    with pool.reserved("") as first, pool.reserved("") as second, pool.reserved("") as third:
        assert [first, second, third] == ["1", "2", "0"]
        with pool.reserved("") as shared:
            assert shared == "1"
    with pool.reserved("1") as named, pool.reserved("") as other:
        assert (named, other) == ("1", "2")
    with pool.reserved("0,2") as several:
        assert several == "0,2"


def test_without_a_gpu_the_processor_is_used() -> None:
    with DevicePool(list).reserved("") as devices:
        assert devices == ""


@pytest.mark.parametrize(("devices", "asked", "processes"), [("", 0, 1), ("", 3, 3), ("0,1", 0, 2), ("4", 8, 1)])
def test_job_file(tmp_path: Path, devices: str, asked: int, processes: int) -> None:
    spec = spec_pb2.FinetuneSpec(base_model="m", devices=spec_pb2.DeviceRequest(processes=asked))
    spec.training.learning_rate = 2e-4
    spec.training.save_strategy = spec_pb2.INTERVAL_STRATEGY_STEPS
    job = Job(tmp_path, spec, Path("/models/m"), Path("/data/train.jsonl"), cuda_visible_devices=devices)
    job.write()
    content = json.loads((tmp_path / "job.json").read_text())
    assert content["processes"] == processes
    assert content["cuda_visible_devices"] == job.environment("t")["CUDA_VISIBLE_DEVICES"] == devices
    assert content["spec"]["training"] == {"learning_rate": 2e-4, "save_strategy": "INTERVAL_STRATEGY_STEPS"}
    assert content["validation_file"] is content["resume_from"] is None
    assert content["output_dir"] == str(tmp_path / "output")
