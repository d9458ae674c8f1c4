"""A task that names GPUs, on machines with none and with another one, as the deployment allows (F4, F34)."""

from pathlib import Path

import pytest

from modelkit.base_models import BaseModels
from modelkit.datasets import DataCache
from modelkit.paths import AllowedRoots
from trainer_service import checks
from trainer_service.checks import SpecChecks
from trainer_service.devices import Device
from tunesmith.task.v1 import spec_pb2
from workerkit.datasets import DatasetChecks

FIELD = "finetune.devices.cuda_visible_devices"


@pytest.mark.parametrize(
    ("present", "cpu_fallback", "refused"),
    [
        pytest.param([], False, True, id="no-gpu"),
        pytest.param([], True, False, id="no-gpu-but-the-cpu-may-stand-in"),
        pytest.param(["0"], True, True, id="one-gpu-of-two"),
        pytest.param(["0", "1"], False, False, id="both"),
    ],
)
def test_named_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, present: list[str], cpu_fallback: bool, refused: bool
) -> None:
    monkeypatch.setattr(checks, "gpus", lambda: [Device(name, "GPU", "cuda", 80, 80) for name in present])
    roots = AllowedRoots([tmp_path])
    spec = spec_pb2.TaskSpec(
        finetune=spec_pb2.FinetuneSpec(
            base_model="m",
            dataset=spec_pb2.DatasetSource(path="d"),
            devices=spec_pb2.DeviceRequest(cuda_visible_devices="0,1"),
            language_model=spec_pb2.LanguageModelParameters(method=spec_pb2.METHOD_LORA),
        )
    )
    found = SpecChecks(
        roots, BaseModels(roots), DatasetChecks(DataCache(tmp_path / "cache")), cpu_fallback=cpu_fallback
    ).check(spec)
    told = [problem.message for problem in found.problems if problem.field == FIELD]
    assert bool(told) is refused
    missing = next((name for name in ("0", "1") if name not in present), "")
    assert all(missing in message for message in told), "the GPU that is not there is named"
