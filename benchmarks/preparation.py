"""100,000 conversations read, checked and tokenised with masks on the replies: ours against TRL's preparation.

python -m benchmarks.preparation [rows] [rounds]

Each run is a fresh process with empty caches; the clock runs from the first byte of data that is read to the last token
that is stored. TRL runs with the number of processes that was fastest. Memory is the proportional set size of a run's
processes at its peak, less what it had before the clock ran.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.report import print_table, spread, verdict
from modelkit.scratch import build as build_scratch_model

ROWS, ROUNDS = 100_000, 5
SAMPLE_SECONDS = 0.25
VOCABULARY = 4096


@dataclass
class Measured:
    """One run: seconds, bytes at the peak beyond those at the beginning, and what became of the first row."""

    seconds: float
    peak: int
    first: str


def write_conversations(path: Path, rows: int) -> None:
    """Conversations of one to three turns, 20 to 400 words each."""
    source = Path(random.__file__).read_text() + Path(tempfile.__file__).read_text()
    words = source.split()
    chance = random.Random(0)
    with path.open("w") as file:
        for _ in range(rows):
            messages = [
                {"role": role, "content": " ".join(chance.choices(words, k=chance.randint(10, 65)))}
                for role in ("user", "assistant") * chance.randint(1, 3)
            ]
            file.write(json.dumps({"messages": messages}) + "\n")


def memory_of(process: psutil.Process) -> int:
    """Proportional set size of a process and its children."""
    total = 0
    for member in [process, *process.children(recursive=True)]:
        with suppress(psutil.Error):
            total += member.memory_full_info().pss
    return total


def run(module: str, *arguments: str) -> Measured:
    """Runs one side in a fresh process."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
    seconds, first = 0.0, ""
    peaks = [0]
    with (
        tempfile.TemporaryDirectory() as output,
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments[:2], output, *arguments[2:]],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        watched, over = psutil.Process(process.pid), threading.Event()
        base = 0

        def watch() -> None:
            while not over.wait(SAMPLE_SECONDS):
                peaks.append(memory_of(watched))

        for line in process.stdout:
            kind, _, rest = line.partition(" ")
            if line.startswith("begin"):
                base = memory_of(watched)
                threading.Thread(target=watch, daemon=True).start()
            elif kind == "seconds":
                seconds = float(rest.split()[0])
                over.set()
            elif kind == "first":
                first = rest.strip()
    if not seconds:
        raise RuntimeError(f"{module} ended without a result, exit status {process.returncode}")
    return Measured(seconds, max(peaks) - base, first)


def main(rows: int = ROWS, rounds: int = ROUNDS) -> None:
    ours: list[Measured] = []
    theirs: list[Measured] = []
    with tempfile.TemporaryDirectory() as directory:
        data, model = Path(directory) / "train.jsonl", Path(directory) / "model"
        write_conversations(data, rows)
        corpus = Path(random.__file__).read_text() + Path(tempfile.__file__).read_text()
        build_scratch_model(model, family="qwen2", corpus=[corpus], hidden_size=64, layers=1, vocab_size=VOCABULARY)
        choices = sorted({1, os.cpu_count() or 1})
        tried = {
            processes: run("benchmarks.peers_trl_data", str(model), str(data), str(processes)) for processes in choices
        }
        best = min(tried, key=lambda processes: tried[processes].seconds)
        for _ in range(rounds):
            ours.append(run("benchmarks.own_data", str(model), str(data)))
            theirs.append(run("benchmarks.peers_trl_data", str(model), str(data), str(best)))
    ratio = statistics.median(run.seconds for run in theirs) / statistics.median(run.seconds for run in ours)
    same = all(run.first == ours[0].first for run in [*ours, *theirs])
    print_table(
        f"Preparation of {rows:,} conversations (first row the same: {same})",
        ["", "runs", "seconds, median (least to greatest)", "peak memory, MB", "figure"],
        [
            ["Tunesmith", len(ours), spread([run.seconds for run in ours]), _megabytes(ours), ""],
            [
                f"TRL, {best} processes",
                len(theirs),
                spread([run.seconds for run in theirs]),
                _megabytes(theirs),
                "",
            ],
            ["TRL / Tunesmith", "", f"{ratio:.2f}", "", verdict(ratio, 2.0, at_most=False)],
        ],
    )


def _megabytes(runs: list[Measured]) -> str:
    return f"{statistics.median(run.peak for run in runs) / 1e6:.0f}"


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
