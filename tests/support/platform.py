"""The whole platform, started with `tunesmith up` as a person would, for tests that break it."""

import json
import os
import signal
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

import httpx
import psutil

from modelkit.scratch import build as build_scratch_model
from tests.support.ports import free_port
from tests.support.waiting import wait_until
from tunesmith.client import Client
from tunesmith.task.v1.spec_pb2 import (
    DatasetSource,
    FinetuneSpec,
    LanguageModelParameters,
    Method,
    TaskSpec,
    TrainingParameters,
)
from tunesmith.task.v1.task_pb2 import STATE_RUNNING, State, Task
from tunesmith.task.v1.task_service_pb2 import CreateTaskRequest, WatchTaskResponse

START_SECONDS = 90.0
STOP_SECONDS = 40.0
ROWS = 96


@dataclass(frozen=True)
class WorkerSecrets:
    """User and password at the broker, and the bearer token."""

    nats_user: str
    nats_password: str
    token: str


@dataclass
class Platform:
    """`tunesmith up` on a data directory; its processes can be killed by name."""

    data_dir: Path
    workers: int = 1
    settings: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None

    def __enter__(self) -> Self:
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self._output = (self.data_dir / "up.out").open("ab")
        command = [
            str(Path(sysconfig.get_path("scripts")) / "tunesmith"),
            "up",
            *("--port", str(self.port)),
            *("--data-dir", str(self.data_dir)),
            *("--workers", str(self.workers)),
        ]
        environment = os.environ | self.settings
        self._process = subprocess.Popen(
            command, env=environment, stdout=self._output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            wait_until(self._healthy, START_SECONDS, "the platform to answer /healthz with 200")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _healthy(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"tunesmith up ended: {(self.data_dir / 'up.out').read_text()[-4000:]}")
        try:
            return httpx.get(f"{self.url}/healthz", timeout=5, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def wait_healthy(self) -> None:
        """Returns when every process serves again."""
        wait_until(self._healthy, START_SECONDS, "the platform to be healthy again")

    def stop(self) -> None:
        """Ends it the orderly way; kills what is left after that."""
        if self._process is None:
            return
        children = psutil.Process(self._process.pid).children(recursive=True) if self._process.poll() is None else []
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for child in children:
            if child.is_running():
                child.kill()
        self._process = None
        if self._output is not None:
            self._output.close()

    def token(self) -> str:
        """The administrator's token."""
        return (self.data_dir / "admin.token").read_text().strip()

    def client(self) -> Client:
        """A client of the SDK, as the administrator."""
        return Client(self.url, self.token())

    def _processes(self) -> list[dict[str, Any]]:
        state = json.loads((self.data_dir / "run" / "processes.json").read_text())
        return list(state["processes"])

    def process_ids(self) -> dict[str, int]:
        """Process ids by the names that `tunesmith up` gives them."""
        return {entry["name"]: int(entry["pid"]) for entry in self._processes()}

    def ports(self) -> dict[str, int]:
        """Ports by the same names."""
        return {entry["name"]: int(entry["port"]) for entry in self._processes()}

    def worker_secrets(self) -> WorkerSecrets:
        """What a worker of this platform identifies itself with."""
        users = json.loads((self.data_dir / "run" / "nats.conf").read_text())["authorization"]["users"]
        account = next(user for user in users if user["user"] == "trainer")
        token = (self.data_dir / "keys" / "trainer.token").read_text()
        return WorkerSecrets(account["user"], account["password"], token)

    def signal(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Sends a signal to a process by name; its process id."""
        pid = self.process_ids()[name]
        os.kill(pid, number)
        return pid


@dataclass(frozen=True)
class Workload:
    """A small model and dataset, and the training that the fault tests run on them."""

    model: Path
    dataset: Path
    steps: int = 160
    save_steps: int = 8

    @classmethod
    def create(cls, directory: Path) -> "Workload":
        """Writes the files below directory, which must be an allowed root of the platform."""
        directory.mkdir(parents=True, exist_ok=True)
        dataset = directory / "train.jsonl"
        words = sorted({name for name in sys.stdlib_module_names if name.isidentifier()})
        rows = [
            {
                "instruction": f"What is {word}?",
                "input": "",
                "output": f"{word} is module number {index} of {len(words)}.",
            }
            for index, word in enumerate(words[:ROWS])
        ]
        dataset.write_text("".join(json.dumps(row) + "\n" for row in rows))
        model = directory / "model"
        build_scratch_model(model, family="llama", corpus=dataset, hidden_size=256, layers=4, vocab_size=512)
        return cls(model, dataset)

    def request(
        self, name: str, *, method: "Method.ValueType", request_id: str = "", **training: Any
    ) -> CreateTaskRequest:
        """What a client submits."""
        parameters = TrainingParameters(
            max_steps=self.steps,
            per_device_train_batch_size=8,
            learning_rate=1e-3,
            logging_steps=1,
            save_steps=self.save_steps,
        )
        parameters.MergeFrom(TrainingParameters(**training))
        spec = FinetuneSpec(
            base_model=str(self.model),
            dataset=DatasetSource(path=str(self.dataset)),
            training=parameters,
            language_model=LanguageModelParameters(method=method, max_seq_length=128),
        )
        return CreateTaskRequest(name=name, spec=TaskSpec(finetune=spec), request_id=request_id)


def losses(client: Client, task_id: str) -> dict[int, float]:
    """The loss curve as the platform recorded it."""
    for series in client.tasks.metrics(task_id, ["loss"], max_points=100_000):
        return dict(zip(series.steps, series.values, strict=True))
    return {}


def wait_for_step(client: Client, task_id: str, step: int, seconds: float = 60.0) -> Task:
    """Waits until a task runs, has come to a step and has a stored checkpoint; the task."""

    def reached() -> Task | None:
        task = client.tasks.get(task_id)
        if task.state != STATE_RUNNING and task.end_time.seconds:
            raise AssertionError(f"the task ended early: {State.Name(task.state)} {task.error}")
        ready = task.state == STATE_RUNNING and task.progress.step >= step and task.pid
        return task if ready and client.tasks.checkpoints(task_id) else None

    return wait_until(reached, seconds, f"step {step} of task {task_id}")


def events_until_end(client: Client, task_id: str) -> list[WatchTaskResponse]:
    """Every event of a task from its creation on, read after its end."""
    return list(client.tasks.watch(task_id, cursor="0"))
