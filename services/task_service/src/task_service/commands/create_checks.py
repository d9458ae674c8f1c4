"""What can be wrong with a request to create a task, as far as this service can tell."""

from collections.abc import Mapping, Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from servicekit.errors import InvalidArgument, Problem
from servicekit.identity import Principal
from task_service.database.models import TaskRow, TaskSpecRow
from task_service.database.tasks import visible_to
from task_service.database.types import storable
from task_service.domain.lifecycle import State
from task_service.sources.wish import OUTPUT_OF, base_task
from tunesmith.task.v1 import spec_pb2, task_service_pb2

LABEL_KEY_LENGTH = 256
LABEL_VALUE_LENGTH = 65_536
# Events carry the whole task, and the broker takes messages of up to a megabyte.
MAX_REQUEST_BYTES = 256 * 1024
_ADAPTING = (spec_pb2.METHOD_LORA, spec_pb2.METHOD_QLORA)


def text_problems(request: task_service_pb2.CreateTaskRequest) -> list[Problem]:
    """Texts that cannot be stored, and dependencies that the spec names but the request does not."""
    texts = {"name": request.name, "description": request.description, "request_id": request.request_id}
    texts |= {f"labels[{key!r}]": key + value for key, value in request.labels.items()}
    texts |= {"spec.finetune.base_model": request.spec.finetune.base_model}
    problems = [Problem(name, "must not contain the NUL character") for name, text in texts.items() if "\0" in text]
    problems += [
        Problem(f"labels[{key!r}]", f"keys have up to {LABEL_KEY_LENGTH} and values up to {LABEL_VALUE_LENGTH} letters")
        for key, value in request.labels.items()
        if not 0 < len(key) <= LABEL_KEY_LENGTH or len(value) > LABEL_VALUE_LENGTH
    ]
    if request.ByteSize() > MAX_REQUEST_BYTES:
        problems.append(
            Problem("", f"the request has {request.ByteSize()} bytes; at most {MAX_REQUEST_BYTES} can be kept")
        )
    base_model = request.spec.finetune.base_model
    if base_model.startswith(OUTPUT_OF) and base_model.removeprefix(OUTPUT_OF) not in request.depends_on:
        problems.append(
            Problem("spec.finetune.base_model", f"{base_model} is the output of a task: name that task in depends_on")
        )
    return problems + _sample_problems(request.spec.evaluate)


def _sample_problems(evaluate: spec_pb2.EvaluateSpec) -> list[Problem]:
    fewest, most = evaluate.min_samples, evaluate.max_samples
    if evaluate.HasField("min_samples") and evaluate.HasField("max_samples") and fewest > most:
        return [Problem("spec.evaluate.min_samples", f"{fewest} is more than max_samples, which is {most}")]
    return []


async def dependency_problems(
    session: AsyncSession, principal: Principal, request: task_service_pb2.CreateTaskRequest
) -> list[Problem]:
    """Tasks to wait for that do not exist for the caller, will not be completed, or make no model to train on."""
    wanted = list(request.depends_on)
    if not wanted:
        return []
    query = select(TaskRow.id, TaskRow.state).where(TaskRow.id.in_(map(storable, wanted)), visible_to(principal))
    states = dict((await session.execute(query)).all())
    problems = await _base_problems(session, base) if (base := base_task(request.spec)) in states else []
    return problems + [
        Problem(f"depends_on[{index}]", f"there is no task {task_id}")
        if task_id not in states
        else Problem(f"depends_on[{index}]", f"task {task_id} is {State(states[task_id]).name}; resume it first")
        for index, task_id in enumerate(wanted)
        if states.get(task_id) in (None, State.FAILED, State.STOPPED)
    ]


async def _base_problems(session: AsyncSession, task_id: str) -> list[Problem]:
    """What a task makes that cannot be trained on."""
    query = select(TaskSpecRow.spec).join(TaskRow, TaskRow.number == TaskSpecRow.task_number)
    spec = spec_pb2.TaskSpec.FromString(await session.scalar(query.where(TaskRow.id == task_id)) or b"")
    if spec.HasField("evaluate"):
        what = "is an evaluation, which makes no model; name a training or an export"
    elif spec.HasField("export") and spec.export.format != spec_pb2.EXPORT_FORMAT_MERGED:
        what = f"makes {spec_pb2.ExportFormat.Name(spec.export.format)}; name an export as EXPORT_FORMAT_MERGED"
    elif spec.finetune.language_model.method in _ADAPTING:
        what = (
            "trains an adapter, which is no base model; export it as EXPORT_FORMAT_MERGED and name the export"
            f"{_merged_model(spec.finetune)}"
        )
    else:
        return []
    return [Problem("spec.finetune.base_model", f"task {task_id} {what}")]


def _merged_model(finetune: spec_pb2.FinetuneSpec) -> str:
    """Where a training that merges leaves a model that can be trained on; empty for other trainings."""
    if not finetune.language_model.merge_after_training:
        return ""
    place = (
        f"{finetune.output_dir.rstrip('/')}/merged" if finetune.output_dir else "the directory merged/ in its output"
    )
    return f", or once it is completed name {place}, where its merged model lies"


def waits(depends_on: Sequence[str], rows: Mapping[str, TaskRow]) -> bool:
    """Whether a dependency is unfinished; rows are locked, so that none can end unseen. Raises InvalidArgument."""
    gone = [it for it in depends_on if it not in rows or rows[it].state in (State.FAILED, State.STOPPED)]
    if gone:
        raise InvalidArgument(problems=[Problem("depends_on", f"task {task_id} has ended") for task_id in gone])
    return any(rows[task_id].state != State.COMPLETED for task_id in depends_on)
