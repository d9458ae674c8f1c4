"""Database rows as messages of the protos."""

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from task_service.database.models import CheckpointRow, TaskRow
from task_service.database.tasks import TaskDetails
from task_service.database.types import MICROSECONDS
from tunesmith.task.v1 import spec_pb2, task_pb2


def timestamp(microseconds: int) -> Timestamp | None:
    """A time of the database as a message, None while unset."""
    return required_timestamp(microseconds) if microseconds else None


def required_timestamp(microseconds: int) -> Timestamp:
    """A time of the database that is set."""
    return Timestamp(seconds=microseconds // MICROSECONDS, nanos=microseconds % MICROSECONDS * 1000)


def microseconds(time: Timestamp) -> int:
    """A message's time as the database keeps it."""
    return time.seconds * MICROSECONDS + time.nanos // 1000


def as_datetime(time: int) -> datetime:
    """A time of the database as a datetime."""
    return datetime.fromtimestamp(time / MICROSECONDS, UTC)


def progress_message(row: TaskRow) -> task_pb2.Progress:
    """How far a task is."""
    return task_pb2.Progress(
        step=row.step,
        total_steps=row.total_steps,
        epoch=row.epoch,
        percent=row.percent,
        eta_seconds=row.eta_seconds,
        phase=row.phase,
    )


def task_message(details: TaskDetails) -> task_pb2.Task:
    """A task as callers see it."""
    row = details.row
    message = task_pb2.Task(
        id=row.id,
        number=row.number,
        name=row.name,
        description=row.description,
        owner=row.owner,
        owner_number=details.spec.owner_number,
        kind=task_pb2.Kind.ValueType(row.kind),
        spec=spec_pb2.TaskSpec.FromString(details.spec.spec),
        state=task_pb2.State.ValueType(row.state),
        progress=progress_message(row),
        attempt=row.attempt,
        run=row.run,
        depends_on=details.spec.depends_on,
        metrics=row.metrics,
        output_dir=row.output_dir,
        worker=row.worker,
        pid=row.pid,
        labels=details.spec.labels,
        pool=row.pool,
        create_time=timestamp(row.create_time),
        start_time=timestamp(row.start_time),
        end_time=timestamp(row.end_time),
        update_time=timestamp(row.update_time),
    )
    for path, source in details.spec.parameter_sources.items():
        message.parameter_sources[path] = task_pb2.ParameterSource.ValueType(source)
    if row.error_reason:
        message.error.CopyFrom(
            task_pb2.TaskError(reason=row.error_reason, message=row.error_message, problems=row.error_problems)
        )
    return message


def checkpoint_message(task_id: str, row: CheckpointRow) -> task_pb2.Checkpoint:
    """A stored checkpoint."""
    return task_pb2.Checkpoint(
        task_id=task_id,
        attempt=row.attempt,
        run=row.run,
        step=row.step,
        loss=row.loss,
        prefix=row.prefix,
        size=row.size,
        manifest_sha256=row.manifest_sha256,
        create_time=timestamp(row.create_time),
    )
