"""Which stored model a request means, of what its task has produced."""

from dataclasses import dataclass

from servicekit.errors import FailedPrecondition, InvalidArgument, NotFound, Problem
from tunesmith.eval.v1 import eval_service_pb2 as pb
from tunesmith.task.v1 import spec_pb2, task_pb2, task_service_pb2

TASK_PREFIX = "task:"


@dataclass(frozen=True, slots=True)
class Stored:
    """A directory in the object store; manifest_sha256 is empty where it was not recorded."""

    prefix: str
    manifest_sha256: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """What a request means. stored is a checkpoint, a final model or an export, None for the base model.

    base_model is the name of the base of a fine-tuning task, base_stored where it lies if it is another task's output;
    own_tokenizer says that its tokenizer is its own. artifact is the name of a GGUF file, where one was named.
    """

    task_id: str
    step: int
    stored: Stored | None
    base_model: str = ""
    base_stored: Stored | None = None
    own_tokenizer: bool = True
    artifact: str = ""


def choose(request: pb.GenerateRequest, source: task_service_pb2.TaskSource) -> Choice:
    """The model that a request means.

    Raises FailedPrecondition when the task has produced none that writes text, NotFound for a checkpoint that there is
    not, InvalidArgument for what does not go together.
    """
    kind = source.spec.WhichOneof("work")
    if kind == "finetune":
        return _of_finetune(request, source)
    if kind == "export":
        return _of_export(request, source)
    raise FailedPrecondition(
        f"task {source.task_id} is of kind {(kind or 'none').upper()}, which makes no model; name a fine-tuning task, "
        "or an export of one",
        reason="TASK_HAS_NO_MODEL",
    )


def _of_finetune(request: pb.GenerateRequest, source: task_service_pb2.TaskSource) -> Choice:
    finetune = source.spec.finetune
    if not finetune.HasField("language_model"):
        text = f"task {source.task_id} trains a model that writes no text"
        raise FailedPrecondition(text, reason="TASK_HAS_NO_LANGUAGE_MODEL")
    if request.artifact:
        raise InvalidArgument(problems=[Problem("artifact", "only exports have artifacts; leave it out")])
    base = finetune.base_model
    from_task = Stored(source.base_model_prefix) if base.startswith(TASK_PREFIX) else None
    own_tokenizer = not finetune.language_model.tokenizer_path
    if request.base_model:
        return Choice(source.task_id, 0, None, base, from_task, own_tokenizer)
    if finetune.language_model.objective == spec_pb2.OBJECTIVE_CLASSIFICATION:
        raise classifies(source.task_id)
    step, stored = _checkpoint(request.checkpoint_step, source)
    return Choice(source.task_id, step, stored, base, from_task, own_tokenizer)


def classifies(task_id: str) -> FailedPrecondition:
    """What a question to a classifier is answered with."""
    text = f"the model of task {task_id} classifies texts, it writes none; evaluate it to see how well"
    return FailedPrecondition(text, reason="MODEL_CLASSIFIES")


def _checkpoint(step: int, source: task_service_pb2.TaskSource) -> tuple[int, Stored]:
    """The step and place of a checkpoint; of several runs' the newest."""
    output = source.output
    if output.prefix and step in (0, output.step):
        return output.step, Stored(output.prefix, output.manifest_sha256)
    if not source.checkpoints and not step:
        text = f"task {source.task_id} has no checkpoint yet; wait for its first one, or ask its base model"
        raise FailedPrecondition(text, reason="NO_CHECKPOINT")
    for checkpoint in reversed(source.checkpoints):
        if step in (0, checkpoint.step):
            return checkpoint.step, Stored(checkpoint.prefix, checkpoint.manifest_sha256)
    steps = [checkpoint.step for checkpoint in source.checkpoints] + ([output.step] if output.prefix else [])
    known = ", ".join(map(str, sorted(set(steps)))) or "none"
    raise NotFound(
        f"task {source.task_id} has no checkpoint of step {step}; there are: {known}", reason="CHECKPOINT_NOT_FOUND"
    )


def _of_export(request: pb.GenerateRequest, source: task_service_pb2.TaskSource) -> Choice:
    problems = []
    if request.checkpoint_step:
        problems.append(Problem("checkpoint_step", "an export is of one checkpoint; leave it out"))
    if request.base_model:
        problems.append(Problem("base_model", "an export has none; name the fine-tuning task"))
    if problems:
        raise InvalidArgument(problems=problems)
    if not source.output.prefix:
        state = task_pb2.State.Name(source.state).removeprefix("STATE_")
        ended = source.state in (task_pb2.STATE_FAILED, task_pb2.STATE_STOPPED)
        advice = "it has left no model, export again" if ended else "wait until it is COMPLETED"
        text = f"export {source.task_id} is {state}; {advice}"
        raise FailedPrecondition(text, reason="EXPORT_NOT_COMPLETED")
    stored = Stored(source.output.prefix, source.output.manifest_sha256)
    step = source.spec.export.checkpoint_step or source.output.step
    return Choice(source.task_id, step, stored, artifact=request.artifact)
