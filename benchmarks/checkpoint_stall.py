"""How long does training stand still for its checkpoints, against transformers' Trainer, which writes them in between?

A llama of about 40 million parameters is trained in full, with AdamW, in bfloat16: a checkpoint holds three times the
weights. Each side is a process of its own; they take turns. Beside the time in which no step is taken, which is what
the figure is about, the table shows how much longer the same steps take when checkpoints are saved: what is written in
the background also takes processor time.

python -m benchmarks.checkpoint_stall
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.report import print_table, spread, verdict
from benchmarks.throughput import write_conversations
from modelkit.scratch import build

ROUNDS, STEPS, SAVE_STEPS = 3, 24, 8
INTERVAL_SECONDS = 60.0
LIMIT = 0.01
BATCH, LENGTH, RATE = 4, 256, 1e-4
WARM_STEPS = 2


def ours(model: Path, dataset: Path, folder: Path, save_steps: int) -> dict[str, Any]:
    """Trains with the recipe; its own metric says how long it stood still."""
    training = {
        "max_steps": STEPS,
        "per_device_train_batch_size": BATCH,
        "learning_rate": RATE,
        "bf16": True,
        "logging_steps": 1,
        "save_strategy": "STEPS" if save_steps else "NO",
        "save_steps": save_steps or STEPS,
    }
    spec = {"training": training, "language_model": {"method": "FULL", "max_seq_length": LENGTH}}
    job = {"spec": spec, "model_dir": str(model), "train_file": str(dataset), "work_dir": ".", "output_dir": "output"}
    folder.mkdir()
    (folder / "job.json").write_text(json.dumps(job))
    command = [sys.executable, "-m", "trainer_service.recipes", str(folder)]
    stalls, times = [], {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            values = event.get("values", {})
            if "loss" in values:
                times[event["step"]] = event["time"]
            if "checkpoint_stall_seconds" in values:
                stalls.append(values["checkpoint_stall_seconds"])
    return {"stalls": stalls, "seconds": times[STEPS] - times[WARM_STEPS]}


def theirs(model: Path, dataset: Path, folder: Path, save_steps: int) -> dict[str, Any]:
    """Trains with transformers' Trainer in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.checkpoint_stall", "trainer"]
    command += [str(model), str(dataset), str(folder), str(save_steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_trainer(model: str, dataset: str, folder: str, save_steps: int) -> None:
    """Prints how long each save took, from the end of a step, and how long the steps took in all."""
    from datasets import load_dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    ended: dict[int, float] = {}
    stalls: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            ended[state.global_step] = time.monotonic()

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            stalls.append(time.monotonic() - ended[state.global_step])

    rows = load_dataset("json", data_files=dataset, split="train", cache_dir=f"{folder}/cache")
    rows = rows.map(
        lambda row: {"prompt": row["instruction"], "completion": row["output"]}, remove_columns=rows.column_names
    )
    settings = SFTConfig(
        output_dir=folder,
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        max_length=LENGTH,
        learning_rate=RATE,
        bf16=True,
        use_cpu=True,
        gradient_checkpointing=False,
        save_strategy="steps" if save_steps else "no",
        save_steps=save_steps or STEPS,
        report_to="none",
        disable_tqdm=True,
    )
    SFTTrainer(model=model, args=settings, train_dataset=rows, callbacks=[Clock()]).train()
    print(json.dumps({"stalls": stalls, "seconds": ended[STEPS] - ended[WARM_STEPS]}))


def compare(model: Path, dataset: Path, folder: Path) -> None:
    """Both sides in turns, with and without checkpoints, then a table."""
    stalls: dict[str, list[float]] = {"tunesmith": [], "transformers": []}
    longer: dict[str, list[float]] = {"tunesmith": [], "transformers": []}
    for number in range(ROUNDS):
        for name, train in (("tunesmith", ours), ("transformers", theirs)):
            saving = train(model, dataset, folder / f"{name}-{number}", SAVE_STEPS)
            plain = train(model, dataset, folder / f"{name}-{number}-plain", 0)
            stalls[name] += saving["stalls"]
            # The last checkpoint comes after the last step, which the steps' time does not hold.
            longer[name].append((saving["seconds"] - plain["seconds"]) / (STEPS // SAVE_STEPS - 1))
    rows = []
    for name, found in stalls.items():
        share = statistics.median(found) / INTERVAL_SECONDS
        figure = verdict(share, LIMIT, at_most=True) if name == "tunesmith" else ""
        rows.append([f"{name}: standing still for a checkpoint (s)", len(found), spread(found), ""])
        rows.append([f"{name}: share at one checkpoint a minute", "", f"{share:.2%}", figure])
        rows.append(
            [f"{name}: steps take longer, for each checkpoint (s)", len(longer[name]), spread(longer[name]), ""]
        )
    ratio = statistics.median(stalls["transformers"]) / statistics.median(stalls["tunesmith"])
    rows.append(["transformers / tunesmith, standing still", "", f"{ratio:.1f}", ""])
    print_table("Checkpoints of a full training", ["", "measured", "median (least to greatest)", "figure"], rows)


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        dataset, model = Path(directory) / "train.jsonl", Path(directory) / "model"
        write_conversations(dataset)
        build(model, family="llama", corpus=dataset, hidden_size=512, layers=10, vocab_size=8192)
        compare(model, dataset, Path(directory))


if __name__ == "__main__":
    if sys.argv[1:2] == ["trainer"]:
        run_trainer(sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]))
    else:
        main()
