"""Trainings as sources, and the evaluations and exports that start from them."""

from typing import Any

import pytest

from servicekit.errors import InvalidArgument
from services.task_service.tests.harness import Attempt, Client, Service, crashed, language_model_spec
from tunesmith.task.v1 import spec_pb2, task_pb2

MERGED = spec_pb2.EXPORT_FORMAT_MERGED


def evaluation(source: str, *steps: int, **fields: Any) -> spec_pb2.TaskSpec:
    """What an evaluation of a task, or of some of its checkpoints, is asked to do."""
    return spec_pb2.TaskSpec(evaluate=spec_pb2.EvaluateSpec(source_task_id=source, checkpoint_steps=steps, **fields))


def export(source: str, step: int = 0, form: Any = MERGED, **fields: Any) -> spec_pb2.TaskSpec:
    """What an export of a checkpoint, for step 0 of the final model, is asked to do."""
    spec = spec_pb2.ExportSpec(source_task_id=source, checkpoint_step=step, format=form, **fields)
    return spec_pb2.TaskSpec(export=spec)


def continuation(source: str, step: int) -> spec_pb2.TaskSpec:
    """What a training that goes on from a checkpoint of a task's first attempt is asked to do."""
    spec = language_model_spec()
    spec.finetune.resume_from_checkpoint = f"tasks/{source}/attempts/1/checkpoint-{step}"
    return spec


async def training(
    service: Service, client: Client, *steps: int, end: str = "", **fields: Any
) -> tuple[task_pb2.Task, Attempt]:
    """A task that a worker trains: with checkpoints, and an end if one is named."""
    task = await client.create(**fields)
    attempt = await service.worker().claim(task.id)
    for step in steps:
        await attempt.say(checkpoint_saved=attempt.checkpoint(step))
    if end == "completed":
        progress = task_pb2.Progress(step=max(steps, default=7))
        completed = attempt.completed()
        completed.progress.CopyFrom(progress)
        await attempt.say(completed=completed)
    elif end == "failed":
        await attempt.say(failed=crashed(retryable=False))
    await service.record_facts()
    return await client.get(task.id), attempt


async def problems(client: Client, spec: spec_pb2.TaskSpec, **fields: Any) -> dict[str, str]:
    """What is wrong with a specification, messages by field."""
    with pytest.raises(InvalidArgument) as caught:
        await client.create(spec=spec, **fields)
    return {problem.field: problem.message for problem in caught.value.problems}
