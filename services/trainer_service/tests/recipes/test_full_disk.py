"""Training onto a file system that is really full: a small one of its own, mounted in a namespace of the test."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from modelkit.inspection import inspect
from services.trainer_service.tests.recipes.conftest import JobFactory
from trainer_service.estimates.disk import files
from trainer_service.estimates.shape import read_shape
from trainer_service.recipes.config import Job

# Mounts a file system of $1 bytes on $2, trains the job in $3 with Python $4, and keeps what was saved in $5.
SCRIPT = """
mount -t tmpfs -o size=$1 tmpfs "$2" || exit 99
"$4" -m trainer_service.recipes "$3"
code=$?
cp -r "$2" "$5"
exit $code
"""


@pytest.mark.timeout(120)
def test_a_disk_that_fills_up_ends_training_and_leaves_the_checkpoint_before(jobs: JobFactory, tmp_path: Path) -> None:
    """Fault 25. The estimate of a checkpoint's size decides how large the disk is: room for one, none for two."""
    training = {"save_strategy": "INTERVAL_STRATEGY_STEPS", "save_steps": 2, "save_total_limit": 0}
    folder = jobs.directory(training=training, language_model={"method": "METHOD_FULL"})
    job = Job.load(folder)
    found = inspect(job.model_dir)
    size = files(read_shape(job.model_dir, found.config, found.dtype), job.finetune, job.model_dir).checkpoint
    job.checkpoints.mkdir()
    kept = tmp_path / "kept"
    words = ("unshare", "--map-root-user", "--mount", "sh", "-c", SCRIPT, "sh", str(int(1.6 * size)))
    done = subprocess.run(
        [*words, str(job.checkpoints), str(folder), sys.executable, str(kept)],
        check=False,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 1, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[-1]["type"] == "error"
    assert events[-1]["reason"] == "DISK_FULL"
    assert "the disk is full" in events[-1]["message"]
    assert not events[-1]["retryable"]
    assert [event["step"] for event in events if event["type"] == "checkpoint"] == [2]
    assert {entry.name for entry in kept.iterdir() if not entry.name.startswith(".")} == {"checkpoint-2"}
    assert inspect(kept / "checkpoint-2").problems == []
