"""Tables of tasks and the page of one task."""

from collections.abc import Iterable, Mapping, Sequence

from google.protobuf.json_format import MessageToDict
from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from tunesmith.cli import text
from tunesmith.task.v1 import task_pb2
from tunesmith.task.v1.task_pb2 import Checkpoint, Task


def task_table(tasks: Iterable[Task]) -> Table:
    """One row for each task."""
    names = ("name", "kind", "state", "done", "step", "loss", "base model", "created")
    columns: list[Column | str] = ["#", Column("id", no_wrap=True, min_width=26), *names]
    table = Table(*columns, box=None, pad_edge=False)
    for task in tasks:
        progress = task.progress
        table.add_row(
            str(task.number),
            task.id,
            Text(text.harmless(task.name)),
            task.spec.WhichOneof("work") or "",
            Text(text.state_word(task.state), style=text.STYLES.get(task.state, "")),
            f"{progress.percent:.0f} %",
            f"{progress.step}/{progress.total_steps}" if progress.total_steps else "",
            text.number(task.metrics["loss"]) if "loss" in task.metrics else "",
            Text(text.harmless(task.spec.finetune.base_model)),
            text.moment(task.create_time),
        )
    return table


def task_page(task: Task, checkpoints: Sequence[Checkpoint]) -> RenderableType:
    """Everything about one task."""
    parts: list[RenderableType] = [_facts(task)]
    if task.error.reason:
        title = "error" if task.state == task_pb2.STATE_FAILED else "last attempt"
        lines = text.with_problems(task.error.message, task.error.problems)
        lines[0] = f"{title}: {task.error.reason}: {lines[0]}"
        parts.append(Text("\n".join(text.harmless(line) for line in lines), style="red"))
    if parameters := _parameters(task):
        parts.append(parameters)
    if checkpoints:
        parts.append(_checkpoints(checkpoints))
    return Group(*(item for part in parts for item in (part, "")))


def _facts(task: Task) -> Table:
    progress, left = task.progress, task.progress.eta_seconds
    rows = {
        "id": f"{task.id} (#{task.number})",
        "name": task.name,
        "description": task.description,
        "owner": task.owner,
        "state": text.state_word(task.state),
        "progress": f"{progress.percent:.1f} %, step {progress.step} of {progress.total_steps or '?'}",
        "phase": progress.phase,
        "time left": text.duration(left) if left else "",
        "attempt, run": f"{task.attempt}, {task.run}",
        "starts from": task.spec.evaluate.source_task_id or task.spec.export.source_task_id,
        "depends on": ", ".join(task.depends_on),
        "base model": task.spec.finetune.base_model,
        "dataset": str(next(iter(MessageToDict(task.spec.finetune.dataset).values()), "")),
        "metrics": ", ".join(f"{name} {text.number(value)}" for name, value in sorted(task.metrics.items())),
        "worker": f"{task.worker} (child {task.pid})" if task.pid else task.worker,
        "output": task.output_dir,
        "created": text.moment(task.create_time),
        "started": text.moment(task.start_time),
        "ended": text.moment(task.end_time),
    }
    return facts_table(rows, {"state": text.STYLES.get(task.state, "")})


def facts_table(rows: Mapping[str, str], styles: Mapping[str, str] | None = None) -> Table:
    """One row for each fact that is known; styles by its name."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in rows.items():
        if value:
            table.add_row(Text(name, style="dim"), Text(text.harmless(value), style=(styles or {}).get(name, "")))
    return table


def _parameters(task: Task) -> Table | None:
    values = dict(flat(MessageToDict(task.spec, preserving_proto_field_name=True), ""))
    table = Table("parameter", "value", "from", box=None, pad_edge=False)
    for path, source in sorted(task.parameter_sources.items()):
        word = task_pb2.ParameterSource.Name(source).removeprefix("PARAMETER_SOURCE_").lower()
        style = "bold" if word != "default" else ""
        table.add_row(path.partition(".")[2], Text(text.harmless(str(values.get(path, "")))), Text(word, style=style))
    return table if table.row_count else None


def flat(value: object, path: str = "") -> Iterable[tuple[str, object]]:
    """Paths and values of a nested mapping."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from flat(item, f"{path}.{name}" if path else name)
    else:
        yield path, value


def _checkpoints(checkpoints: Sequence[Checkpoint]) -> Table:
    table = Table("checkpoint", "loss", "size", "attempt", "saved", box=None, pad_edge=False)
    for item in checkpoints:
        loss = text.number(item.loss) if item.HasField("loss") else ""
        row = (str(item.step), loss, text.size(item.size), str(item.attempt), text.moment(item.create_time))
        table.add_row(*row)
    return table
