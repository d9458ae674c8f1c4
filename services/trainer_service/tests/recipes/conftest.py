"""A tiny model, a small dataset, and jobs that run in this process with their events collected."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from modelkit import scratch
from trainer_service.recipes.config import Job
from trainer_service.recipes.language_model import train
from trainer_service.recipes.world import World
from workerkit.child.events import EventWriter
from workerkit.child.stopping import StopRequest

CPU = World(0, 1, torch.device("cpu"))
Watch = Callable[[dict[str, Any]], None]


class Recorder(EventWriter):
    """Keeps events instead of writing them; watch sees each as it happens."""

    def __init__(self, watch: Watch | None = None) -> None:
        super().__init__(None)
        self.events: list[dict[str, Any]] = []
        self._watch = watch

    def _send(self, event: Mapping[str, Any]) -> None:
        self.events.append(dict(event))
        if self._watch:
            self._watch(dict(event))

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == kind]

    def kinds(self) -> list[str]:
        return [event["type"] for event in self.events]

    def text(self) -> str:
        return "\n".join(event["text"] for event in self.of("log"))

    def curve(self, name: str = "loss") -> dict[int, float]:
        """A metric by step."""
        return {event["step"]: event["values"][name] for event in self.of("metrics") if name in event["values"]}


@dataclass
class JobFactory:
    """Makes jobs on the tiny model and the small dataset; each has a directory of its own."""

    folder: Path
    model_dir: Path
    train_file: Path
    made: list[Path] = field(default_factory=list)

    def directory(self, *, training: Any = None, language_model: Any = None, **content: Any) -> Path:
        """A directory with job.json."""
        folder = self.folder / f"job-{len(self.made)}"
        folder.mkdir()
        self.made.append(folder)
        settings = {"max_steps": 6, "logging_steps": 1, "save_strategy": "INTERVAL_STRATEGY_NO", "learning_rate": 5e-3}
        spec = {
            "base_model": "tiny",
            "training": {**settings, **(training or {})},
            "language_model": {"max_seq_length": 128, **(language_model or {})},
        }
        job = {
            "spec": spec,
            "model_dir": str(self.model_dir),
            "train_file": str(self.train_file),
            "work_dir": str(folder),
            "output_dir": str(folder / "output"),
            **content,
        }
        (folder / "job.json").write_text(json.dumps(job))
        return folder

    def __call__(self, **content: Any) -> Job:
        return Job.load(self.directory(**content))


def run(job: Job, watch: Watch | None = None, stop: StopRequest | None = None) -> Recorder:
    """Trains a job in this process."""
    events = Recorder(watch)
    train(job, events, stop or StopRequest(), CPU)
    return events


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    text = Path(json.__file__).read_text()
    folder = tmp_path_factory.mktemp("models")
    return {
        family: scratch.build(
            folder / family, family=family, hidden_size=32, layers=2, vocab_size=320, corpus=[text]
        ).directory
        for family in scratch.FAMILIES
    }


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    rows = [{"instruction": f"Say {n}", "input": "", "output": f"{n} is what I say. " * (1 + n % 4)} for n in range(22)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def jobs(tmp_path: Path, tiny_models: dict[str, Path], dataset: Path) -> JobFactory:
    return JobFactory(tmp_path, tiny_models["llama"], dataset)
