"""Jobs as processes: events, signals, crashes, and several data-parallel processes (F27, F28; faults 3, 29, 30, 34)."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from .conftest import JobFactory

SAVING = {"save_strategy": "STEPS", "save_steps": 2, "max_steps": 6}
ENDLESS = {"max_steps": 100_000, "logging_steps": 5, "learning_rate": 1e-5}
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
NO_DROPOUT = {"lora": {"dropout": 0.0}}


class Process:
    """A recipe process and what it has said so far."""

    def __init__(self, zygote: "Zygote", directory: Path, pid: int) -> None:
        self.pid = pid
        self._zygote = zygote
        self._directory = directory

    @property
    def events(self) -> list[dict[str, Any]]:
        path = self._directory / "events.jsonl"
        whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
        return [json.loads(line) for line in whole.splitlines()]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == kind]

    def until(self, kind: str, count: int = 1) -> None:
        """Waits until it has said something."""
        deadline = time.monotonic() + 50
        while len(self.of(kind)) < count:
            assert time.monotonic() < deadline, f"no {kind}: {self.events[-3:]} {self.log}"
            assert psutil.pid_exists(self.pid)
            time.sleep(0.01)

    @property
    def log(self) -> str:
        return (self._directory / "log.txt").read_text()

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        return self._zygote.ask("wait", self.pid)

    def curve(self, name: str = "loss") -> dict[int, float]:
        return {event["step"]: event["values"][name] for event in self.of("metrics") if name in event["values"]}


class Zygote:
    """The process that forks the others."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("zygote.py")
        environment = os.environ | ONE_THREAD
        self._process = subprocess.Popen(
            [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self._process.stdout
        assert self._process.stdout.readline() == "ready\n"

    def ask(self, *command: Any) -> int:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def start(self, directory: Path, **environment: str) -> Process:
        return Process(self, directory, self.ask("start", str(directory), environment))

    def close(self) -> None:
        self._process.communicate("")


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    started = Zygote()
    yield started
    started.close()


def ended(process: Process) -> list[dict[str, Any]]:
    return [event for event in process.events if event["type"] in ("done", "stopped", "error")]


def test_a_job_runs_to_its_end(zygote: Zygote, jobs: JobFactory) -> None:
    directory = jobs.directory(training=SAVING)
    process = zygote.start(directory)
    assert process.wait() == 0
    kinds = [event["type"] for event in process.events]
    assert kinds[0] == "phase"
    assert kinds.index("started") < kinds.index("progress") < kinds.index("checkpoint") < kinds.index("done")
    assert kinds[-1] == "done"
    assert all(abs(event["time"] - time.time()) < 300 for event in process.events)
    assert [event["phase"] for event in process.of("phase")] == ["loading", "training", "saving"]
    assert (directory / "output" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_forked_child_trains_on_quantized_weights(zygote: Zygote, jobs: JobFactory, kind: str) -> None:
    """What bitsandbytes prints about kernels that nothing needs is not in the log."""
    language_model = {"method": "METHOD_QLORA", "quantization": {"type": kind}}
    process = zygote.start(jobs.directory(language_model=language_model))
    assert process.wait() == 0
    assert process.events[-1]["type"] == "done"
    assert "bitsandbytes" not in process.log
    assert "kernels" not in process.log
    assert "MatMul8bitLt" not in process.log


def test_term_saves_and_ends_in_order(zygote: Zygote, jobs: JobFactory) -> None:
    directory = jobs.directory(training=ENDLESS)
    process = zygote.start(directory)
    process.until("metrics", 3)
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    (stopped,) = ended(process)
    assert stopped["type"] == "stopped"
    (checkpoint,) = process.of("checkpoint")
    assert checkpoint["step"] == stopped["step"] > 0
    assert Path(checkpoint["path"], "adapter_model.safetensors").is_file()


def test_killed_in_the_middle_and_resumed_the_curve_goes_on(zygote: Zygote, jobs: JobFactory) -> None:
    training = {"max_steps": 30, "save_strategy": "STEPS", "save_steps": 5, "logging_steps": 1}
    whole = zygote.start(jobs.directory(training=training))
    assert whole.wait() == 0
    directory = jobs.directory(training=training)
    killed = zygote.start(directory)
    killed.until("checkpoint", 2)
    killed.signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert ended(killed) == []
    newest = max((directory / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    resumed_directory = jobs.directory(training=training, resume_from=str(newest))
    resumed = zygote.start(resumed_directory)
    assert resumed.wait() == 0
    step = resumed.of("started")[0]["step"]
    assert step >= 10
    assert resumed.curve() == {at: loss for at, loss in whole.curve().items() if at > step}
    final = [load_file(folder / "output" / "adapter_model.safetensors") for folder in (jobs.made[0], resumed_directory)]
    assert all(final[0][name].equal(final[1][name]) for name in final[0])


def test_every_problem_of_a_job_becomes_one_error_event(zygote: Zygote, jobs: JobFactory) -> None:
    directory = jobs.directory(
        training={"optim": "adam_and_eve", "lr_scheduler_type": "sawtooth", "fp16": True, "bf16": True},
        language_model={"lora": {"bias": "some"}},
    )
    process = zygote.start(directory)
    assert process.wait() == 1
    (error,) = process.events
    assert (error["reason"], error["retryable"]) == ("NOT_IMPLEMENTED", False)
    assert len(error["problems"]) == 4


def test_what_is_not_foreseen_may_be_tried_again_and_leaves_a_trace(zygote: Zygote, jobs: JobFactory) -> None:
    directory = jobs.directory(training=SAVING)
    (directory / "checkpoints").write_text("in the way")
    process = zygote.start(directory)
    assert process.wait() == 1
    (error,) = ended(process)
    assert (error["reason"], error["retryable"]) == ("STORAGE_FAILED", True)
    assert "Traceback" in process.log


def test_two_processes_take_the_steps_that_one_takes(zygote: Zygote, jobs: JobFactory) -> None:
    training = {"max_steps": 12, "eval_strategy": "STEPS", "eval_steps": 4, "gradient_accumulation_steps": 2}
    more = {"language_model": {**NO_DROPOUT, "eval_ratio": 0.01}}  # one row, so one process has none
    two = zygote.start(jobs.directory(training={**training, "per_device_train_batch_size": 2}, processes=2, **more))
    assert two.wait() == 0, two.log
    one = zygote.start(jobs.directory(training={**training, "per_device_train_batch_size": 4}, **more))
    assert one.wait() == 0
    assert list(one.curve("eval_loss")) == [4, 8, 12]
    for name in ("loss", "grad_norm", "eval_loss"):
        assert two.curve(name) == pytest.approx(one.curve(name), rel=1e-4)
    assert len(ended(two)) == 1
    assert two.of("started")[0]["total_steps"] == 12


def test_two_processes_train_on_quantized_weights_as_one_does(zygote: Zygote, jobs: JobFactory) -> None:
    training = {"max_steps": 6}
    quantized = {**NO_DROPOUT, "method": "METHOD_QLORA", "quantization": {"compute_dtype": "float32"}}
    merged = {**quantized, "merge_after_training": True}
    two = zygote.start(
        jobs.directory(training={**training, "per_device_train_batch_size": 2}, processes=2, language_model=merged)
    )
    assert two.wait() == 0, two.log
    one = zygote.start(
        jobs.directory(training={**training, "per_device_train_batch_size": 4}, language_model=quantized)
    )
    assert one.wait() == 0, one.log
    assert two.curve("loss") == pytest.approx(one.curve("loss"), rel=1e-4)
    assert (jobs.made[0] / "output" / "merged" / "model.safetensors").is_file()


def test_two_processes_stop_together_and_resume(zygote: Zygote, jobs: JobFactory) -> None:
    process = zygote.start(jobs.directory(training=ENDLESS, processes=2))
    process.until("metrics", 2)
    children = psutil.Process(process.pid).children()
    assert len(children) == 2
    process.signal(signal.SIGTERM)
    assert process.wait() == 0, process.log
    (stopped,) = ended(process)
    (checkpoint,) = process.of("checkpoint")
    assert checkpoint["step"] == stopped["step"] > 0
    assert not any(child.is_running() for child in children)
    training = {**ENDLESS, "max_steps": stopped["step"] + 3}
    resumed = zygote.start(jobs.directory(training=training, processes=2, resume_from=checkpoint["path"]))
    assert resumed.wait() == 0, resumed.log
    assert resumed.of("started")[0]["step"] == stopped["step"]
    assert "other devices" not in str(resumed.of("log"))


def test_when_one_process_dies_the_others_end(zygote: Zygote, jobs: JobFactory) -> None:
    process = zygote.start(jobs.directory(training=ENDLESS, processes=2))
    process.until("metrics", 1)
    children = psutil.Process(process.pid).children()
    children[1].kill()
    assert process.wait() == 1
    assert psutil.wait_procs(children, timeout=20)[1] == []
    assert all(event["retryable"] for event in ended(process))


def test_when_the_parent_is_killed_nothing_stays_behind(zygote: Zygote, jobs: JobFactory) -> None:
    process = zygote.start(jobs.directory(training=ENDLESS, processes=2))
    process.until("metrics", 1)
    children = psutil.Process(process.pid).children()
    process.signal(signal.SIGKILL)
    process.wait()
    assert psutil.wait_procs(children, timeout=20)[1] == []


def test_an_error_of_several_processes_is_told_once(zygote: Zygote, jobs: JobFactory) -> None:
    process = zygote.start(jobs.directory(language_model={"max_seq_length": 8}, processes=2))
    assert process.wait() == 1
    (error,) = ended(process)
    assert error["reason"] == "NOTHING_TO_TRAIN_ON"


def test_cuda_devices_that_are_not_there_fall_back_to_the_cpu(zygote: Zygote, jobs: JobFactory) -> None:
    directory = jobs.directory(cuda_visible_devices="0,1", processes=2)
    process = zygote.start(directory, CUDA_VISIBLE_DEVICES="")
    assert process.wait() == 0
    assert "CUDA devices 0,1 are not on this machine" in str(process.of("log"))


def lines_of(command: list[str]) -> list[dict[str, Any]]:
    """The events that a command writes to standard output, which holds nothing else."""
    run = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, check=False, env=os.environ | ONE_THREAD
    )
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_a_shell_gets_events_alone_on_standard_output(jobs: JobFactory) -> None:
    events = lines_of(["trainer_service.recipes", str(jobs.directory(training={"max_steps": 2}))])
    assert events[-1]["type"] == "done"


def test_torchrun_starts_recipes_too(jobs: JobFactory) -> None:
    directory = jobs.directory(training={"max_steps": 2}, processes=2)
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    events = lines_of([*torchrun, "-m", "trainer_service.recipes", str(directory)])
    assert [event["type"] for event in events].count("done") == 1
