"""A tiny model, trained a little with adapters by PEFT, and evaluation jobs on it that run in this process."""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from eval_service.recipes.evaluation import evaluate
from eval_service.recipes.job import Job
from modelkit import scratch
from modelkit.loading import load_config, load_model, load_tokenizer
from workerkit.child.events import EventWriter
from workerkit.child.stopping import StopRequest

Watch = Callable[[dict[str, Any]], None]
LABELS = ("bad", "fair", "good")


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

    def text(self) -> str:
        return "\n".join(event["text"] for event in self.of("log"))


@dataclass
class Bench:
    """Makes jobs on the tiny model."""

    folder: Path
    model_dir: Path
    train_file: Path
    made: list[Path] = field(default_factory=list)

    def job(self, **content: Any) -> Job:
        """A job; each has a directory of its own."""
        folder = self.folder / f"job-{len(self.made)}"
        folder.mkdir()
        self.made.append(folder)
        learnt = {"max_seq_length": 128, "eval_ratio": 0.4, **content.pop("learnt", {})}
        job = {
            "model_dir": str(self.model_dir),
            "train_file": str(self.train_file),
            "work_dir": str(folder),
            "output_dir": str(folder / "output"),
            "candidates": [],
            "choice": {"ratio": 1.0},
            "answering": {"max_tokens": 8},
            "learnt": learnt,
            **content,
        }
        (folder / "job.json").write_bytes(orjson.dumps(job, default=str))
        return Job.load(folder)

    def run(self, job: Job, watch: Watch | None = None, stop: StopRequest | None = None) -> Recorder:
        """Evaluates in this process."""
        events = Recorder(watch)
        evaluate(job, events, stop or StopRequest())
        return events

    def report(self, job: Job) -> dict[str, Any]:
        """The content of report.json."""
        content: dict[str, Any] = orjson.loads((job.output_dir / "report.json").read_bytes())
        return content


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = Path(json.__file__).read_text()
    folder = tmp_path_factory.mktemp("models") / "tiny"
    return scratch.build(folder, hidden_size=32, layers=2, vocab_size=320, corpus=[text]).directory


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    rows = [{"instruction": f"Say {n}", "input": "", "output": f"{n} is what I say. " * (1 + n % 4)} for n in range(22)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def bench(tmp_path: Path, tiny_model: Path, dataset: Path) -> Bench:
    return Bench(tmp_path, tiny_model, dataset)


def adapter(model_dir: Path, target: Path, *, seed: int, size: float = 0.3, labels: tuple[str, ...] = ()) -> Path:
    """A directory with a LoRA adapter of random weights, and the tokenizer, as a training leaves it."""
    config: Any = load_config(model_dir)
    model = load_model(model_dir, dtype=torch.float32, config=config, labels=labels or None)
    lora = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "v_proj", "down_proj"],
        task_type="SEQ_CLS" if labels else "CAUSAL_LM",
        modules_to_save=["score"] if labels else None,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about names within transformers that PEFT still uses
        adapted: Any = get_peft_model(model, lora)
    adapted.peft_config["default"].base_model_name_or_path = str(model_dir)
    adapted.save_pretrained(target)
    torch.manual_seed(seed)
    file = target / "adapter_model.safetensors"
    weights = {name: torch.randn_like(tensor) * size for name, tensor in load_file(file).items()}
    save_file(weights, file, {"format": "pt"})
    load_tokenizer(model_dir, config).save_pretrained(target)
    if labels:
        (target / "labels.json").write_bytes(orjson.dumps(labels))
    return target


@pytest.fixture
def checkpoints(tmp_path: Path, tiny_model: Path) -> list[dict[str, Any]]:
    """Candidates at steps 10 and 20."""
    return [
        {"step": step, "directory": str(adapter(tiny_model, tmp_path / f"checkpoint-{step}", seed=step))}
        for step in (10, 20)
    ]
