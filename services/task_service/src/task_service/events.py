"""Authoritative events and queue messages, written to the outbox with the change that they tell of."""

import secrets
from collections.abc import Sequence
from urllib.parse import quote

from sqlalchemy.ext.asyncio import AsyncSession

from servicekit import subjects
from servicekit.outbox import Outbox
from task_service.convert import as_datetime, required_timestamp
from task_service.database.models import TaskRow
from task_service.portions import portions
from tunesmith.events.v1 import fact_pb2
from tunesmith.task.v1 import event_pb2, quota_service_pb2, task_pb2

SOURCE = "/tunesmith/task-service"
KIND_WORDS = {
    task_pb2.KIND_FINETUNE: "finetune",
    task_pb2.KIND_EVALUATE: "evaluate",
    task_pb2.KIND_EXPORT: "export",
    task_pb2.KIND_PREPARE: "prepare",
}
EVENT_BYTES = 256 * 1024  # a quarter of what the broker takes at most


def work_subject(row: TaskRow) -> str:
    """Subject of the queue message of a task."""
    return subjects.work(KIND_WORDS[task_pb2.Kind.ValueType(row.kind)], row.pool, row.id)


class Announcer:
    """Adds messages to the outbox within one transaction, all with the same time."""

    def __init__(self, session: AsyncSession, outbox: Outbox, now: int) -> None:
        self._session = session
        self._outbox = outbox
        self._now = now

    async def dispatch(self, row: TaskRow, after_seconds: float) -> None:
        """Puts the task on the queue, after some seconds."""
        item = fact_pb2.WorkItem(task_id=row.id, attempt=row.dispatch_attempt)
        row.dispatch_time = self._now + int(after_seconds * 1_000_000)
        not_before = as_datetime(row.dispatch_time) if after_seconds > 0 else None
        await self._outbox.add(self._session, work_subject(row), item.SerializeToString(), not_before=not_before)

    async def task_changed(self, row: TaskRow, change: str, message: task_pb2.Task) -> None:
        """Tells of a change of state with the task as it is now."""
        await self._event(row, f"task.{change}", event_pb2.TaskEvent(task=message))

    async def progressed(self, row: TaskRow, progress: task_pb2.Progress) -> None:
        """Tells how far a task is."""
        await self._event(row, "task.progressed", event_pb2.TaskEvent(progress=progress))

    async def metrics_logged(self, row: TaskRow, points: Sequence[task_pb2.MetricPoint]) -> None:
        """Tells of new points, in events of a size that the broker takes."""
        for start, end in portions([point.ByteSize() for point in points], EVENT_BYTES):
            batch = event_pb2.MetricBatch(points=points[start:end])
            await self._event(row, "metrics.logged", event_pb2.TaskEvent(metrics=batch))

    async def checkpoint(self, row: TaskRow, verb: str, checkpoint: task_pb2.Checkpoint, reason: str = "") -> None:
        """Tells that a checkpoint was saved, removed or rejected."""
        payload = event_pb2.CheckpointEvent(checkpoint=checkpoint, reason=reason)
        await self._event(row, f"checkpoint.{verb}", event_pb2.TaskEvent(checkpoint=payload))

    async def quota(self, row: TaskRow, verb: str, quota: quota_service_pb2.Quota) -> None:
        """Tells that the quota of a task's owner is low or exhausted; such events are about the user."""
        event = event_pb2.TaskEvent(quota=quota)
        await self._event(row, f"quota.{verb}", event, about=row.owner, subject=subjects.user(row.owner))

    async def _event(
        self, row: TaskRow, event_type: str, event: event_pb2.TaskEvent, *, about: str = "", subject: str = ""
    ) -> None:
        event.id = secrets.token_hex(16)
        event.type, event.task_id, event.owner = event_type, row.id, row.owner
        event.time.CopyFrom(required_timestamp(self._now))
        headers = {
            "ce-specversion": "1.0",
            "ce-id": event.id,
            "ce-type": f"tunesmith.v1.{event_type}",
            "ce-source": SOURCE,
            "ce-subject": quote(about) or row.id,
            "ce-time": as_datetime(self._now).isoformat(timespec="microseconds"),
            "content-type": "application/protobuf",
        }
        await self._outbox.add(
            self._session,
            subjects.event(event_type, subject or row.id),
            event.SerializeToString(),
            headers=headers,
            message_id=event.id,
        )
