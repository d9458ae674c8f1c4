"""From a submit over HTTP to the first optimiser step, warm worker, against a fresh process running TRL's SFTTrainer.

python -m benchmarks.first_step
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.report import percentile, print_table, spread, verdict
from benchmarks.workload import TrainingWorkload
from tests.support.platform import Platform
from tunesmith.client import Client

SUBMITS, PEER_RUNS, ROUNDS = 5, 1, 4


def submit_to_first_step(client: Client, workload: TrainingWorkload) -> float:
    """Seconds until a watcher hears of the first step; the task is then ended."""
    started = time.perf_counter()
    task = client.tasks.create(workload.request("first step", steps=500))
    for response in client.tasks.watch(task.id):
        progress = response.event.progress.step or response.event.task.progress.step
        if progress >= 1 or any(point.step >= 1 for point in response.event.metrics.points):
            break
    elapsed = time.perf_counter() - started
    client.tasks.stop(task.id, discard=True)
    client.tasks.wait(task.id)
    return elapsed


def fresh_process_to_first_step(workload: TrainingWorkload, directory: Path) -> float:
    """Seconds from the start of a Python process until it says that its first step is done."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    output = tempfile.mkdtemp(dir=directory)
    started = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.peers_trl", str(workload.model), str(workload.dataset), output],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("first step"):
                elapsed = time.perf_counter() - started
                process.kill()
                return elapsed
    raise RuntimeError(f"the peer ended without a step, exit status {process.returncode}")


def main() -> None:
    ours: list[float] = []
    theirs: list[float] = []
    with tempfile.TemporaryDirectory() as directory, Platform(Path(directory) / "data") as platform:
        workload = TrainingWorkload.create(platform.data_dir / "datasets" / "bench")
        with platform.client() as client:
            submit_to_first_step(client, workload)
            for _ in range(ROUNDS):
                ours += [submit_to_first_step(client, workload) for _ in range(SUBMITS)]
                theirs += [fresh_process_to_first_step(workload, Path(directory)) for _ in range(PEER_RUNS)]
    median, ratio = statistics.median(ours), statistics.median(theirs) / statistics.median(ours)
    print_table(
        "Submit to first optimiser step (seconds)",
        ["", "runs", "median (least to greatest)", "p90", "figure"],
        [
            [
                "Tunesmith, warm worker",
                len(ours),
                spread(ours),
                f"{percentile(ours, 0.9):.3f}",
                verdict(median, 1.0, at_most=True),
            ],
            ["TRL, fresh process", len(theirs), spread(theirs), f"{percentile(theirs, 0.9):.3f}", ""],
            ["TRL / Tunesmith", "", f"{ratio:.1f}", "", verdict(ratio, 8, at_most=False)],
        ],
    )


if __name__ == "__main__":
    main()
