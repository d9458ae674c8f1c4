"""The job of an evaluation as its child reads it: job.json in plain types, every default in place."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from workerkit.child.errors import InvalidJob

CACHE_BYTES = 20 << 30
SAMPLING: Mapping[str, float] = {
    "temperature": 0.3,
    "top_k": 20,
    "top_p": 0.9,
    "min_p": 0.0,
    "repetition_penalty": 1.1,
    "presence_penalty": 0.0,
    "seed": 42,
}
TEST, VALIDATION, AUTO = "TEST", "VALIDATION", "AUTO"

SUITE_STALL_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Learnt:
    """What of the training decides how its rows are read: the names are those of its parameters."""

    objective: str = "SUPERVISED"
    max_seq_length: int = 512
    max_samples: int = 0
    eval_ratio: float = 0.0
    test_ratio: float = 0.0
    seed: int = 42
    labels: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Choice:
    """Which rows are scored: a share of them, within bounds, by chance that depends on the seed alone."""

    split: str = AUTO
    ratio: float = 0.3
    least: int = 5
    most: int = 20
    seed: int = 42

    def size(self, rows: int) -> int:
        """How many of so many rows."""
        return min(rows, max(self.least, min(self.most, round(rows * self.ratio))))


@dataclass(frozen=True, slots=True)
class Candidate:
    """A checkpoint in a directory."""

    step: int
    directory: Path


@dataclass(frozen=True, slots=True)
class Answering:
    """How answers are generated; sampling has the fields of eval_service.generation's Sampling."""

    sampling: Mapping[str, float] = field(default_factory=lambda: dict(SAMPLING))
    max_tokens: int = 256
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """An evaluation on this machine.

    With own_dataset the files are those of a dataset of its own, else those that the task was trained on. titles are
    what the report says of task and data. Suites may ask the model nothing for suite_stall_seconds. dataset_sha256 is
    the identity of the training's rows, empty when unknown.
    """

    model_dir: Path
    train_file: Path
    work_dir: Path
    output_dir: Path
    candidates: tuple[Candidate, ...]
    validation_file: Path | None = None
    test_file: Path | None = None
    own_dataset: bool = False
    include_base_model: bool = False
    scores: tuple[str, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    suites: tuple[str, ...] = ()
    suite_stall_seconds: float = SUITE_STALL_SECONDS
    learnt: Learnt = field(default_factory=Learnt)
    choice: Choice = field(default_factory=Choice)
    answering: Answering = field(default_factory=Answering)
    embedding_dir: Path | None = None
    cache_dir: Path | None = None
    cache_bytes: int = CACHE_BYTES
    dataset_sha256: str = ""
    titles: Mapping[str, str] = field(default_factory=dict)

    def write(self) -> None:
        """Writes job.json into work_dir. Raises OSError."""
        content = orjson.dumps(dataclasses.asdict(self), default=str, option=orjson.OPT_INDENT_2)
        (self.work_dir / "job.json").write_bytes(content)

    @classmethod
    def load(cls, directory: Path) -> "Job":
        """Reads job.json. Raises InvalidJob."""
        try:
            content = orjson.loads((directory / "job.json").read_bytes())
            return cls(**_read(content, directory))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise InvalidJob(f"{directory}/job.json cannot be read: {error!r}") from None


def _read(content: dict[str, Any], directory: Path) -> dict[str, Any]:
    names = ("model_dir", "train_file", "work_dir", "output_dir", "validation_file", "test_file")
    paths = {name: directory / content[name] for name in (*names, "embedding_dir", "cache_dir") if content.get(name)}
    learnt, answering = content.get("learnt") or {}, content.get("answering") or {}
    sampling = {**SAMPLING, **answering.get("sampling", {})}
    return {
        **content,
        **paths,
        "candidates": tuple(Candidate(item["step"], directory / item["directory"]) for item in content["candidates"]),
        "scores": tuple(content.get("scores", ())),
        "suites": tuple(content.get("suites", ())),
        "learnt": Learnt(**{**learnt, "labels": tuple(learnt.get("labels", ()))}),
        "choice": Choice(**content.get("choice", {})),
        "answering": Answering(sampling, answering.get("max_tokens", 256), tuple(answering.get("stop", ()))),
    }
