"""The parts of a recipe one by one: events, schedules, failures."""

import errno
import json
import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from modelkit.errors import InvalidDataset, Problem
from trainer_service.recipes import remedies, saving
from trainer_service.recipes.config import Training
from trainer_service.recipes.errors import LossDiverged
from trainer_service.recipes.failures import OUTLOOK
from trainer_service.recipes.precision import allow_tf32, choose
from trainer_service.recipes.prefetch import prefetch
from workerkit.child.events import EventWriter
from workerkit.child.failures import describe


def read_events(write: Any) -> list[dict[str, Any]]:
    reading, writing = os.pipe()
    write(EventWriter(writing))
    os.close(writing)
    with os.fdopen(reading) as file:
        return [json.loads(line) for line in file]


def test_events_are_json_lines_with_a_time() -> None:
    def write(events: EventWriter) -> None:
        events.metrics(3, {"loss": math.nan, "a": math.inf, "b": -math.inf, "c": 0.5})
        events.checkpoint(step=3, path=Path("/c"), loss=None)
        events.error(reason="R", message="broken \udcff text", problems=["p"])

    metrics, checkpoint, error = read_events(write)
    assert metrics["values"] == {"loss": "NaN", "a": "Infinity", "b": "-Infinity", "c": 0.5}
    assert metrics["time"] > 1e9
    assert (checkpoint["path"], checkpoint["loss"]) == ("/c", None)
    assert (error["reason"], error["message"], error["retryable"]) == ("R", "broken ? text", False)


def test_quick_progress_is_thinned_out() -> None:
    def write(events: EventWriter) -> None:
        for step in range(1000):
            events.progress(step=step, total_steps=1000, epoch=0.1, always=step == 999)

    told = read_events(write)
    assert 2 <= len(told) <= 20
    assert (told[0]["step"], told[-1]["step"]) == (0, 999)


def test_prefetching_keeps_order_raises_in_place_and_ends_its_thread() -> None:
    def items() -> Iterator[int]:
        yield from range(50)
        raise ValueError("at the end")

    got: list[int] = []
    with pytest.raises(ValueError, match="at the end"):
        for item in prefetch(items(), depth=3):
            got.append(item)  # noqa: PERF402 - what came before the error matters
    assert got == list(range(50))
    endless = prefetch(iter(lambda: 1, 2), depth=2)
    assert next(endless) == 1
    endless.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_warm_up_steps_win_over_a_share() -> None:
    assert Training(warmup_steps=7, warmup_ratio=0.5).warmup(100) == 7
    assert Training(warmup_ratio=0.05).warmup(101) == 6


@pytest.mark.parametrize(
    ("wish", "frozen", "stored", "weights", "compute"),
    [
        ({}, True, "bfloat16", torch.float32, torch.float32),
        ({"bf16": True}, True, "float32", torch.bfloat16, torch.bfloat16),
        ({"bf16": True}, False, "bfloat16", torch.float32, torch.bfloat16),
        ({"fp16": True}, True, "float16", torch.float32, torch.float32),
        ({"tf32": True}, True, "float16", torch.float32, torch.float32),
    ],
)
def test_number_formats_on_a_cpu(
    wish: dict[str, bool], frozen: bool, stored: str, weights: torch.dtype, compute: torch.dtype
) -> None:
    formats = choose(Training(**wish), torch.device("cpu"), frozen=frozen, stored=stored)
    assert (formats.weights, formats.compute) == (weights, compute)
    assert bool(formats.notes) == bool({"fp16", "tf32"} & wish.keys())


@pytest.mark.parametrize(
    ("wish", "frozen", "stored", "weights", "compute", "note"),
    [
        ({"fp16": True}, False, "bfloat16", torch.float32, torch.float16, ""),
        ({"bf16": True}, True, "float32", torch.float16, torch.float16, "no bfloat16"),
        ({}, True, "bfloat16", torch.bfloat16, torch.bfloat16, "stay in bfloat16"),
        ({"tf32": True}, False, "float32", torch.float32, torch.float32, ""),
    ],
)
def test_number_formats_on_a_gpu_without_bfloat16(
    monkeypatch: pytest.MonkeyPatch,
    wish: dict[str, bool],
    frozen: bool,
    stored: str,
    weights: torch.dtype,
    compute: torch.dtype,
    note: str,
) -> None:
    """C22, M31: the loss is scaled where gradients would vanish."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    formats = choose(Training(**wish), torch.device("cuda"), frozen=frozen, stored=stored)
    assert (formats.weights, formats.compute, formats.scales) == (weights, compute, compute == torch.float16)
    assert bool(formats.notes) == bool(note)
    assert note in "".join(formats.notes)


def test_tf32_is_for_those_who_ask_for_it() -> None:
    """M31."""
    before = torch.get_float32_matmul_precision()
    try:
        for wish, found in ((True, "high"), (False, "highest")):
            allow_tf32(Training(tf32=wish))
            assert torch.get_float32_matmul_precision() == found
    finally:
        torch.set_float32_matmul_precision(before)


def out_of_memory() -> None:
    torch.empty(1 << 60)


def disk_full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "/data/checkpoint")


def diverged() -> None:
    raise LossDiverged("the loss is no longer a number at step 3", ["lower learning_rate"])


def bad_data() -> None:
    raise InvalidDataset([Problem("dataset", "one"), Problem("dataset", "two")])


@pytest.mark.parametrize(
    ("cause", "reason", "retryable", "problems"),
    [
        (out_of_memory, "OUT_OF_MEMORY", False, 6),
        (disk_full, "DISK_FULL", False, 0),
        (diverged, "LOSS_DIVERGED", False, 1),
        (bad_data, "INVALID_DATASET", False, 2),
        (lambda: Path("/proc/self/no").read_text(), "STORAGE_FAILED", True, 0),
        (lambda: {}[1], "TRAINING_FAILED", True, 0),
    ],
)
def test_every_end_has_a_reason(cause: Any, reason: str, retryable: bool, problems: int) -> None:
    with pytest.raises(Exception) as caught:
        cause()
    failure = describe(caught.value, OUTLOOK)
    assert (failure.reason, failure.retryable, len(failure.problems)) == (reason, retryable, problems)
    if reason == "OUT_OF_MEMORY":
        assert failure.problems == remedies.OUT_OF_MEMORY
        assert "GiB at the peak" in failure.message


def test_a_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "checkpoint-1"

    def half(staging: Path) -> None:
        (staging / "a").write_text("a")
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        saving.write_directory(target, half)
    assert list(tmp_path.iterdir()) == []
    saving.write_directory(target, lambda staging: (staging / "a").touch())
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
