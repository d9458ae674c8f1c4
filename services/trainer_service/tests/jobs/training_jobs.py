"""Children that follow a script in place of a recipe: script.json beside the training file says what happens.

Each item of the script is a list: what to do, and with what. A child that goes on from a checkpoint skips the steps
that the checkpoint has done.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any


class Recipe:
    """The state of one run."""

    def __init__(self, job_dir: Path) -> None:
        self.job: dict[str, Any] = json.loads((job_dir / "job.json").read_text())
        self.folder = Path(self.job["work_dir"])
        self.script = json.loads((Path(self.job["train_file"]).parent / "script.json").read_text())
        self.step = 0
        self.total = self.script["steps"]
        self.stopping = False
        if resume_from := self.job["resume_from"]:
            self.step = int((Path(resume_from) / "state.txt").read_text())

    def emit(self, kind: str, **content: Any) -> None:
        line = json.dumps({"type": kind, "time": time.time(), **content}).encode() + b"\n"
        os.write(int(os.environ["TUNESMITH_EVENTS_FD"]), line)

    def save(self) -> None:
        final = self.folder / "checkpoints" / f"checkpoint-{self.step}"
        if final.exists():
            return
        temporary = final.with_name(f".{final.name}")
        (temporary / "nested").mkdir(parents=True)
        (temporary / "state.txt").write_text(str(self.step))
        (temporary / "nested" / "weights.safetensors").write_bytes(bytes([self.step % 256]) * 100_000)
        temporary.rename(final)
        self.emit("checkpoint", step=self.step, path=str(final), loss=1.0 / self.step)

    def train(self) -> int:
        """Does what the script says before each step, and saves where it says."""
        signal.signal(signal.SIGTERM, self.on_term)
        self.emit("phase", phase="training")
        self.emit("started", step=self.step, total_steps=self.total)
        while self.step < self.total:
            self.step += 1
            self.perform(self.script.get("at", {}).get(str(self.step), []))
            print(f"step {self.step}", flush=True)
            self.emit("metrics", step=self.step, values={"loss": 1.0 / self.step, "grad_norm": "NaN"})
            self.emit("progress", step=self.step, total_steps=self.total, epoch=self.step / self.total)
            if self.step % self.script.get("save_steps", 1000) == 0:
                self.save()
            if self.stopping:
                self.save()
                self.emit("stopped", step=self.step)
                return 0
            self.wait()
        if not self.script.get("no_final_checkpoint"):
            self.save()
        output = Path(self.job["output_dir"])
        output.mkdir(parents=True)
        (output / "model.safetensors").write_text(f"trained to {self.step}")
        self.emit("done", path=str(output), step=self.step)
        self.perform(self.script.get("after", []))
        return 0

    def on_term(self, *_: object) -> None:
        if not self.script.get("deaf"):
            self.stopping = True

    def wait(self) -> None:
        """Goes on when the file that the script names for this step exists."""
        if name := self.script.get("gates", {}).get(str(self.step)):
            gate = Path(self.job["train_file"]).parent / name
            while not gate.exists() and not self.stopping:
                time.sleep(0.005)

    def perform(self, actions: list[list[Any]]) -> None:
        for name, *arguments in actions:
            if self.job["resume_from"] and name.startswith("first_"):
                continue
            getattr(self, f"do_{name.removeprefix('first_')}")(*arguments)

    def do_print(self, text: str, times: int = 1) -> None:
        for _ in range(times):
            print(text, flush=True)

    def do_raw(self, text: str) -> None:
        os.write(int(os.environ["TUNESMITH_EVENTS_FD"]), text.encode() + b"\n")

    def do_kill(self, number: int) -> None:
        os.kill(os.getpid(), number)

    def do_exit(self, code: int) -> None:
        print("leaving early", file=sys.stderr)
        sys.exit(code)

    def do_error(self, reason: str, retryable: bool) -> None:
        problems = ["one thing", "another"]
        self.emit("error", reason=reason, message="it cannot go on", problems=problems, retryable=retryable)
        sys.exit(1)

    def do_hang(self) -> None:
        while True:
            time.sleep(60)

    def do_burst(self, points: int) -> None:
        for number in range(points):
            self.emit("metrics", step=number, values={"burst": float(number)})


def run(job_dir: Path) -> int:
    """Follows the script."""
    return Recipe(job_dir).train()
