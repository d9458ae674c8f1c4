"""The checkpoints that an evaluation scores, of what its task has produced."""

from collections.abc import Iterator
from dataclasses import dataclass

from tunesmith.task.v1 import spec_pb2, task_service_pb2

# Of a checkpoint what a model is made of, and what it says of its origin: no optimiser and nothing of a merge.
WEIGHTS = (".safetensors", ".safetensors.index.json")
NAMED = (
    "adapter_config.json",
    "config.json",
    "generation_config.json",
    "labels.json",
    "origin.json",
    "trainer_state.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


@dataclass(frozen=True, slots=True)
class StoredCandidate:
    """A checkpoint or final model in the object store; manifest_sha256 is empty where it was not recorded."""

    step: int
    prefix: str
    manifest_sha256: str = ""


def is_needed(path: str) -> bool:
    """Whether a file of a checkpoint is read by an evaluation."""
    return "/" not in path and (path in NAMED or path.endswith(WEIGHTS))


def candidates_of(spec: spec_pb2.EvaluateSpec, source: task_service_pb2.TaskSource) -> list[StoredCandidate]:
    """In the order of their steps: those that are named, else every checkpoint and the final model."""
    stored = {item.step: item for item in _stored(source)}
    steps = spec.checkpoint_steps or stored.keys()
    return [stored[step] for step in sorted(steps) if step in stored]


def missing_steps(spec: spec_pb2.EvaluateSpec, source: task_service_pb2.TaskSource) -> list[int]:
    """Steps that are named and have no stored checkpoint."""
    stored = {item.step for item in _stored(source)}
    return [step for step in spec.checkpoint_steps if step not in stored]


def _stored(source: task_service_pb2.TaskSource) -> Iterator[StoredCandidate]:
    """A checkpoint of the final step stands for the final model: both have the same weights."""
    if source.HasField("output"):
        yield StoredCandidate(source.output.step, source.output.prefix, source.output.manifest_sha256)
    for item in source.checkpoints:
        yield StoredCandidate(item.step, item.prefix, item.manifest_sha256)
