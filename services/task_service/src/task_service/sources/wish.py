"""What an evaluation or export wants of the task it starts from, and whether that task has it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from servicekit.errors import Problem
from tunesmith.task.v1 import spec_pb2, task_pb2, task_service_pb2

OUTPUT_OF = "task:"
NAMED_STEPS = 20

_ENDED = frozenset({task_pb2.STATE_STOPPED, task_pb2.STATE_COMPLETED, task_pb2.STATE_FAILED})
_OTHER_KINDS = {"evaluate": "an evaluation", "export": "an export", "prepare": "a preparation of data"}


class Need(Enum):
    """What is wanted of the source when no checkpoint is named."""

    EVERYTHING = "every checkpoint and the final model, as far as there are any"
    FINAL_MODEL = "the final model"
    BASE_MODEL = "the base model alone"


@dataclass(frozen=True, slots=True)
class Wish:
    """The source by its id; path is that of the field that names it, steps are the named ones by their paths."""

    task_id: str
    path: str
    need: Need
    steps: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What speaks against the wish, and whether it can be granted only after the source has ended."""

    problems: Sequence[Problem] = ()
    waits: bool = False


def source_wish(spec: spec_pb2.TaskSpec) -> Wish | None:
    """The wish of an evaluation or export, None for other work."""
    if spec.HasField("evaluate"):
        steps = {f"spec.evaluate.checkpoint_steps[{at}]": it for at, it in enumerate(spec.evaluate.checkpoint_steps)}
        return Wish(spec.evaluate.source_task_id, "spec.evaluate.source_task_id", Need.EVERYTHING, steps)
    if spec.HasField("export"):
        export = spec.export
        base = export.format == spec_pb2.EXPORT_FORMAT_GGUF_BASE
        named = export.checkpoint_step and not base
        return Wish(
            export.source_task_id,
            "spec.export.source_task_id",
            Need.BASE_MODEL if base else Need.FINAL_MODEL,
            {"spec.export.checkpoint_step": export.checkpoint_step} if named else {},
        )
    return None


def base_task(spec: spec_pb2.TaskSpec) -> str:
    """The task whose output a training starts from, empty for every other base model."""
    name = spec.finetune.base_model
    return name.removeprefix(OUTPUT_OF) if name.startswith(OUTPUT_OF) else ""


def judged(wish: Wish, source: task_service_pb2.TaskSource, *, depends: bool) -> Verdict:
    """Whether a source has what is wished; depends says that the task waits for the source's completion anyway."""
    kind = source.spec.WhichOneof("work") or ""
    if kind != "finetune":
        what = _OTHER_KINDS.get(kind, "no training")
        return Verdict([Problem(wish.path, f"task {source.task_id} is {what}; name a fine-tuning task")])
    if source.state not in _ENDED:
        return _of_unfinished(wish, source, depends)
    if wish.steps:
        return Verdict(_missing(wish, source, ""))
    stored = [item.step for item in source.checkpoints]
    if source.state == task_pb2.STATE_COMPLETED or wish.need is Need.BASE_MODEL:
        return Verdict()
    if wish.need is Need.EVERYTHING and stored:
        return Verdict()
    word = task_pb2.State.Name(source.state).removeprefix("STATE_")
    advice = f"name one of its checkpoints: {_named(stored)}" if stored else "and no checkpoint; resume it first"
    return Verdict([Problem(wish.path, f"task {source.task_id} is {word} and has no final model, {advice}")])


def _of_unfinished(wish: Wish, source: task_service_pb2.TaskSource, depends: bool) -> Verdict:
    if depends:
        return Verdict(waits=True)
    if wish.steps:
        return Verdict(_missing(wish, source, " so far; name the task in depends_on to wait until it is completed"))
    base_is_there = not base_task(source.spec) or source.base_model_prefix
    return Verdict(waits=not (wish.need is Need.BASE_MODEL and base_is_there))


def _missing(wish: Wish, source: task_service_pb2.TaskSource, more: str) -> list[Problem]:
    """The final model answers to its step too, which need not have a checkpoint."""
    stored = {item.step for item in source.checkpoints}
    stored |= {source.output.step} if source.HasField("output") and source.output.step else set()
    has = f"it has {_named(sorted(stored))}" if stored else "it has none"
    return [
        Problem(path, f"task {source.task_id} has no stored checkpoint at step {step}; {has}{more}")
        for path, step in wish.steps.items()
        if step not in stored
    ]


def _named(steps: Sequence[int]) -> str:
    more = ", ..." if len(steps) > NAMED_STEPS else ""
    return ", ".join(map(str, steps[:NAMED_STEPS])) + more
