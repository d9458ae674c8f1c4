"""Training steps per second through the platform, against the same recipe on the same job run alone.

python -m benchmarks.overhead
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from google.protobuf.json_format import MessageToDict

from benchmarks.report import print_table, spread, verdict
from benchmarks.workload import TrainingWorkload
from tests.support.platform import Platform
from tunesmith.client import Client
from tunesmith.task.v1.task_pb2 import Task

STEPS, WARM_STEPS, ROUNDS = 120, 20, 5


def through_platform(client: Client, workload: TrainingWorkload) -> tuple[Task, float]:
    """A task, and its steps per second by the times of its metric points."""
    task = client.tasks.create(workload.request("overhead", steps=STEPS))
    times: dict[int, float] = {}
    for response in client.tasks.watch(task.id):
        for point in response.event.metrics.points:
            if point.name == "loss":
                times[point.step] = point.time.ToNanoseconds() / 1e9
    return client.tasks.wait(task.id), rate(times)


def alone(job: Path) -> float:
    """Steps per second of the recipe in a process of its own, by the times of its events."""
    with subprocess.Popen(
        [sys.executable, "-m", "trainer_service.recipes", str(job)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        times = {}
        for line in process.stdout:
            event = json.loads(line)
            if event["type"] == "metrics" and "loss" in event["values"]:
                times[int(event["step"])] = float(event["time"])
    return rate(times)


def rate(times: dict[int, float]) -> float:
    return (STEPS - WARM_STEPS) / (times[STEPS] - times[WARM_STEPS])


def write_job(task: Task, workload: TrainingWorkload, directory: Path) -> Path:
    """The job directory that a worker would give to the recipe for a task."""
    directory.mkdir()
    job = {
        "spec": MessageToDict(task.spec.finetune, preserving_proto_field_name=True),
        "model_dir": str(workload.model),
        "train_file": str(workload.dataset),
        "validation_file": None,
        "work_dir": str(directory / "work"),
        "output_dir": str(directory / "output"),
        "resume_from": None,
        "processes": 1,
        "cuda_visible_devices": "",
    }
    (directory / "job.json").write_text(json.dumps(job))
    return directory


def main() -> None:
    ours: list[float] = []
    theirs: list[float] = []
    with tempfile.TemporaryDirectory() as directory, Platform(Path(directory) / "data") as platform:
        workload = TrainingWorkload.create(platform.data_dir / "datasets" / "bench")
        with platform.client() as client:
            for number in range(ROUNDS):
                task, steps_per_second = through_platform(client, workload)
                ours.append(steps_per_second)
                theirs.append(alone(write_job(task, workload, Path(directory) / f"job-{number}")))
    ratio = statistics.median(ours) / statistics.median(theirs)
    print_table(
        "Training steps per second",
        ["", "runs", "median (least to greatest)", "figure"],
        [
            ["through Tunesmith", len(ours), spread(ours), ""],
            ["the recipe alone", len(theirs), spread(theirs), ""],
            ["ratio", "", f"{ratio:.3f}", verdict(ratio, 0.98, at_most=False)],
        ],
    )


if __name__ == "__main__":
    main()
