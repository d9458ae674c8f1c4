"""What is stored of the models that an evaluation reads, looked at before it is accepted. No file of it is read."""

import asyncio
from collections.abc import Callable

from eval_service.candidates import candidates_of, is_needed
from servicekit.errors import Problem
from servicekit.objects import ObjectStore
from tunesmith.task.v1 import spec_pb2, task_service_pb2
from workerkit.artifacts import ArtifactDamaged, require_whole

AT_ONCE = 8
SOURCE, STEPS = "evaluate.source_task_id", "evaluate.checkpoint_steps"


async def stored_problems(
    store: ObjectStore, spec: spec_pb2.EvaluateSpec, source: task_service_pb2.TaskSource
) -> list[Problem]:
    """Every checkpoint of which files are missing or of another size, and so the base model that a task has made.

    Raises what the object store raises when it cannot be read.
    """
    turns = asyncio.Semaphore(AT_ONCE)

    async def problem(
        field: str, name: str, prefix: str, sha256: str = "", wanted: Callable[[str], bool] = lambda _: True
    ) -> Problem | None:
        async with turns:
            try:
                await require_whole(store, prefix, sha256, wanted=wanted)
            except ArtifactDamaged as error:
                return Problem(field, f"{name} cannot be used: {error}")
        return None

    fields = {step: f"{STEPS}[{place}]" for place, step in enumerate(spec.checkpoint_steps)}
    checks = [
        problem(fields.get(item.step, STEPS), f"checkpoint {item.step}", item.prefix, item.manifest_sha256, is_needed)
        for item in candidates_of(spec, source)
    ]
    if source.base_model_prefix:
        name = f"the output of {source.spec.finetune.base_model}"
        checks.insert(0, problem(SOURCE, name, source.base_model_prefix))
    return [found for found in await asyncio.gather(*checks) if found]
