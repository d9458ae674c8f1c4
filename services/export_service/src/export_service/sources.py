"""What of a fine-tuning task is exported: a checkpoint or its final model, and the model that it was trained on."""

from dataclasses import dataclass

from modelkit.checkpoints import MANIFEST
from tunesmith.task.v1 import spec_pb2, task_pb2, task_service_pb2

TASK_PREFIX = "task:"
# Files that training goes on from, and what else lies beside a model that is not part of it.
NOT_MODEL = ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pt", "training_args.bin", "test.jsonl")
BESIDE = ("runs/", "merged/")
STATE = "trainer_state.json"
TEMPLATES = "additional_chat_templates/"
ENDED = (task_pb2.STATE_COMPLETED, task_pb2.STATE_FAILED, task_pb2.STATE_STOPPED)
METHODS_WITH_ADAPTER = (spec_pb2.METHOD_LORA, spec_pb2.METHOD_QLORA)


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored directory and its manifest's hash; step is that of its weights."""

    prefix: str
    manifest_sha256: str
    step: int


def stored_model(source: task_service_pb2.TaskSource, step: int) -> Stored | None:
    """The checkpoint of a step, for 0 the final model; None when there is none."""
    for checkpoint in reversed(source.checkpoints):
        if checkpoint.step == step:
            return Stored(checkpoint.prefix, checkpoint.manifest_sha256, step)
    # The final model also answers to its own step, which need not have a checkpoint.
    if source.HasField("output") and step in (0, source.output.step):
        return Stored(source.output.prefix, source.output.manifest_sha256, source.output.step)
    return None


def has_adapter(source: task_service_pb2.TaskSource) -> bool:
    """Whether the task has trained an adapter, not all weights."""
    return source.spec.finetune.language_model.method in METHODS_WITH_ADAPTER


def is_model_file(path: str) -> bool:
    """Whether a stored file belongs to a model that is exported, state from which its origin is read included."""
    return path not in NOT_MODEL and not path.startswith(BESIDE)


def is_adapter_file(path: str) -> bool:
    """Whether a stored file belongs to an adapter as it is handed out."""
    return is_model_file(path) and path not in (STATE, MANIFEST) and "/" not in path.removeprefix(TEMPLATES)


def wants_base_alone(spec: spec_pb2.ExportSpec) -> bool:
    """Whether nothing of what was trained is exported."""
    return spec.format == spec_pb2.EXPORT_FORMAT_GGUF_BASE


def needs_base(spec: spec_pb2.ExportSpec, source: task_service_pb2.TaskSource) -> bool:
    """Whether the base model's files are needed; an archive of the adapter does without."""
    if wants_base_alone(spec):
        return True
    return has_adapter(source) and spec.format != spec_pb2.EXPORT_FORMAT_ADAPTER
