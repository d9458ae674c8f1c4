"""What the environment check says of packages and GPUs, and what it advises (M1, M2)."""

import tomllib
from pathlib import Path

import pytest

from trainer_service import environment
from trainer_service.devices import Device, cpu

GB = 10**9
PROJECT = Path(environment.__file__).parents[2] / "pyproject.toml"


def gpu(memory: float, capability: float, free: float | None = None) -> Device:
    total = int(memory * GB)
    return Device("0", "Some GPU", "cuda", total, total if free is None else int(free * GB), capability=capability)


@pytest.mark.parametrize(
    ("device", "ok", "words"),
    [
        (gpu(24, 8.6), True, "bfloat16"),
        (gpu(16, 7.5), True, "no bfloat16, use fp16"),
        (gpu(24, 6.1), False, "older than this torch supports"),
        (gpu(3, 8.6), False, "LoRA needs 4 GB or more"),
        (gpu(24, 8.6, free=1), False, "end the programs"),
    ],
)
def test_gpus(device: Device, ok: bool, words: str) -> None:
    check = environment._gpu(device)
    assert (check.ok, check.needed) == (ok, False)
    assert words in f"{check.found} {check.advice}"
    assert bool(check.advice) != ok


def test_packages_that_are_missing_come_with_advice() -> None:
    needed, optional = environment._package("no-such-package"), environment._package("no-such-package", "use another")
    assert (needed.ok, needed.needed, optional.needed) == (False, True, False)
    assert "make setup" in needed.advice
    assert "use another" in optional.advice
    assert all(environment._package(name).ok for name in (*environment.PACKAGES, *environment.OPTIONAL_PACKAGES))


def test_every_package_that_trainings_declare_is_checked() -> None:
    """Those of the platform itself are there when the service runs; accelerate, tokenizers come through others."""
    declared = tomllib.loads(PROJECT.read_text())["project"]["dependencies"]
    names = {line.partition(">")[0].partition("=")[0].strip() for line in declared}
    ours = {name for name in names if name.startswith("tunesmith-")}
    assert names - ours - {"orjson", "numpy", "nvidia-ml-py"} <= {
        *environment.PACKAGES,
        *environment.OPTIONAL_PACKAGES,
    }


def test_memory_within_the_limit_of_a_control_group(tmp_path: Path) -> None:
    """Both versions' files; without a limit the machine's own memory counts."""
    whole = cpu(tmp_path)
    assert whole.memory_total > whole.memory_free > 0
    (tmp_path / "memory.max").write_text("max\n")
    assert cpu(tmp_path).memory_total == whole.memory_total
    (tmp_path / "memory.max").write_text(f"{1 << 30}\n")
    (tmp_path / "memory.current").write_text(f"{1 << 29}\n")
    limited = cpu(tmp_path)
    assert (limited.memory_total, limited.memory_free) == (1 << 30, 1 << 29)
    (tmp_path / "memory.max").unlink()
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(f"{1 << 62}")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("5")
    assert cpu(tmp_path).memory_total == whole.memory_total
