"""Speeds of earlier trainings: what is remembered, what counts as alike, and what a damaged file does."""

import json
import math
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from trainer_service.estimates.calibration import MAX_BYTES, MAX_RECORDS, Calibration, Run

RUN = Run("GPU", 1, "LORA", False, 7_000_000, 1000.0, 2.0)


def test_duration_is_known_after_a_run_like_it(tmp_path: Path) -> None:
    calibration = Calibration(tmp_path / "deep" / "calibration.json")
    assert calibration.steps_per_second(RUN) == 0.0
    calibration.record(RUN)
    assert calibration.steps_per_second(RUN) == pytest.approx(2.0)
    assert calibration.steps_per_second(replace(RUN, tokens_per_step=2000.0)) == pytest.approx(1.0)
    assert calibration.steps_per_second(replace(RUN, parameters=14_000_000)) == pytest.approx(1.0)
    others = ({"device": "CPU"}, {"processes": 2}, {"method": "FULL"}, {"checkpointing": True}, {"parameters": 10**9})
    assert [calibration.steps_per_second(replace(RUN, **other)) for other in others] == [0.0] * 5
    assert calibration.steps_per_second(replace(RUN, tokens_per_step=0.0)) == 0.0


def test_the_median_of_the_newest_runs_counts(tmp_path: Path) -> None:
    calibration = Calibration(tmp_path / "calibration.json")
    for speed in (100.0, 1.0, 2.0, 3.0, 4.0, 50.0):
        calibration.record(replace(RUN, steps_per_second=speed))
    assert calibration.steps_per_second(RUN) == pytest.approx(3.0)


def test_runs_that_say_nothing_are_not_recorded(tmp_path: Path) -> None:
    calibration = Calibration(tmp_path / "calibration.json")
    for speed in (0.0, float("nan"), float("inf"), -1.0):
        calibration.record(replace(RUN, steps_per_second=speed))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"{}",
        b"[" * 100_000,
        b" " * (MAX_BYTES + 1),
        b'[1, null, {"device": "GPU"}]',
        json.dumps([{**json.loads('{"device": 1}'), "processes": "x"}]).encode(),
        b'[{"device": "GPU", "processes": 1, "method": "LORA", "checkpointing": false, "parameters": NaN}]',
        json.dumps([{**asdict(RUN), "tokens_per_step": math.nan}]).encode(),
    ],
)
def test_a_damaged_file_counts_as_empty_and_is_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "calibration.json"
    path.write_bytes(content)
    calibration = Calibration(path)
    assert calibration.steps_per_second(RUN) == 0.0
    calibration.record(RUN)
    assert calibration.runs() == [RUN]


def test_the_file_is_bounded(tmp_path: Path) -> None:
    calibration = Calibration(tmp_path / "calibration.json")
    for number in range(MAX_RECORDS + 5):
        calibration.record(replace(RUN, steps_per_second=1.0 + number))
    speeds = [run.steps_per_second for run in calibration.runs()]
    assert (len(speeds), speeds[-1]) == (MAX_RECORDS, MAX_RECORDS + 5.0)
    assert (tmp_path / "calibration.json").stat().st_size < MAX_BYTES


def _record_some(path: Path) -> None:
    for _ in range(10):
        Calibration(path).record(replace(RUN, device=str(os.getpid())))


def test_several_processes_share_the_file(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    with ProcessPoolExecutor(3) as pool:
        list(pool.map(_record_some, [path] * 3))
    assert len(Calibration(path).runs()) == 30


def test_a_place_that_takes_no_files_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    Calibration(tmp_path / "file" / "calibration.json").record(RUN)
