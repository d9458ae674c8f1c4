"""The job that a training child is given: a directory with job.json."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.json_format import MessageToDict

from modelkit.datasets import DataCache
from tunesmith.task.v1 import spec_pb2


@dataclass(frozen=True, slots=True)
class Job:
    """Everything a recipe needs to know. Paths are absolute; resume_from is a verified checkpoint's directory;
    predicted_memory_bytes is 0 without an estimate."""

    folder: Path
    spec: spec_pb2.FinetuneSpec
    model_dir: Path
    train_file: Path
    validation_file: Path | None = None
    test_file: Path | None = None
    tokenizer_dir: Path | None = None
    cache: DataCache | None = None
    resume_from: Path | None = None
    resume_step: int = 0
    cuda_visible_devices: str = ""
    predicted_memory_bytes: int = 0

    @property
    def output_dir(self) -> Path:
        """Where the child leaves the finished model."""
        return self.folder / "output"

    @property
    def processes(self) -> int:
        """Data-parallel processes: one for each GPU, else as many as asked for."""
        if self.cuda_visible_devices:
            return len(self.cuda_visible_devices.split(","))
        return max(1, self.spec.devices.processes)

    def write(self) -> None:
        """Writes job.json."""
        content = {
            "spec": MessageToDict(self.spec, preserving_proto_field_name=True),
            "model_dir": str(self.model_dir),
            "train_file": str(self.train_file),
            "validation_file": _path(self.validation_file),
            "test_file": _path(self.test_file),
            "tokenizer_dir": _path(self.tokenizer_dir),
            "cache_dir": _path(self.cache.root if self.cache else None),
            "cache_bytes": self.cache.limit_bytes if self.cache else 0,
            "work_dir": str(self.folder),
            "output_dir": str(self.output_dir),
            "resume_from": _path(self.resume_from),
            "processes": self.processes,
            "cuda_visible_devices": self.cuda_visible_devices,
            "predicted_memory_bytes": self.predicted_memory_bytes,
        }
        (self.folder / "job.json").write_text(json.dumps(content, indent=2))

    def environment(self, task_id: str) -> Mapping[str, str]:
        """What the child finds in its environment."""
        return {
            "CUDA_VISIBLE_DEVICES": self.cuda_visible_devices,
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "TUNESMITH_TASK_ID": task_id,
        }


def _path(path: Path | None) -> str | None:
    return None if path is None else str(path)
