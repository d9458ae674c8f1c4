"""A real broker, database and object store, and a task whose life a test plays by hand."""

import asyncio
import secrets
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import update

from servicekit import subjects
from servicekit.bus import EventBus
from servicekit.errors import Unavailable
from servicekit.identity import Principal, Role
from servicekit.objects import ObjectStore
from task_service.database.access import Database
from task_service.database.models import TaskRow, TaskSpecRow
from task_service.domain.lifecycle import State
from task_service.streams.archives import LogArchives
from task_service.streams.log_archiver import LogArchiver
from task_service.streams.log_reader import LogReader
from task_service.streams.log_tail import TailTimes
from task_service.streams.watch import TaskWatcher
from tests.support.nats import NatsServer
from tests.support.waiting import eventually
from tunesmith.events.v1.fact_pb2 import LogBatch
from tunesmith.task.v1 import event_pb2, task_pb2

OWNER = Principal("ann", Role.USER)
STRANGER = Principal("bob", Role.USER)
DYING = Path(__file__).with_name("dying.py")
QUICK = TailTimes(idle=0.1, ending=0.02, recheck=0.2, final_wait=0.5)


@dataclass
class World:
    """What the tests of this folder work with."""

    server: NatsServer
    bus: EventBus
    database: Database
    objects: ObjectStore

    @property
    def archives(self) -> LogArchives:
        return LogArchives(self.database)

    def reader(self, times: TailTimes = QUICK) -> LogReader:
        return LogReader(self.bus, self.objects, self.archives, times)

    def archiver(self, final_wait: float = 0.0, purge_after: float = 0.0) -> LogArchiver:
        return LogArchiver(self.bus, self.objects, self.archives, final_wait=final_wait, purge_after=purge_after)

    def watcher(self, idle_seconds: float = 0.2) -> TaskWatcher:
        return TaskWatcher(self.bus, self.database, idle_seconds)

    async def create_task(self, task_id: str = "t" * 26, **values: object) -> TaskRow:
        defaults: dict[str, object] = {
            "id": task_id,
            "owner": OWNER.user,
            "name": "a task",
            "kind": task_pb2.KIND_FINETUNE,
            "pool": "default",
            "request_hash": "",
            "state": State.RUNNING,
            "attempt": 1,
        }
        async with self.database.sessions.begin() as session:
            row = TaskRow(**(defaults | values))
            session.add(row)
            await session.flush()
            session.add(TaskSpecRow(task_number=row.number, spec=b"", parameter_sources={}))
        return row

    async def set_task(self, row: TaskRow, **values: object) -> None:
        async with self.database.sessions.begin() as session:
            await session.execute(update(TaskRow).where(TaskRow.number == row.number).values(**values))

    async def log(
        self, task_id: str, lines: Sequence[str], attempt: int = 1, final: bool = False, number: int = 0
    ) -> int:
        batch = LogBatch(task_id=task_id, attempt=attempt, final=final, number=number)
        for text in lines:
            line = batch.lines.add(text=text)
            line.time.GetCurrentTime()
        return await self.publish(subjects.log(task_id), batch.SerializeToString())

    async def announce(self, task_id: str, event_type: str, **payload: object) -> int:
        event = event_pb2.TaskEvent(type=event_type, task_id=task_id, **payload)  # type: ignore[arg-type]
        return await self.publish(subjects.event(event_type, task_id), event.SerializeToString())

    async def publish(self, subject: str, data: bytes) -> int:
        """Publishes once, also when the broker is restarting."""
        message_id = secrets.token_hex(8)

        async def published() -> int:
            with suppress(Unavailable):
                return await self.bus.publish(subject, data, message_id=message_id)
            return 0

        return await eventually(published, 20, "the broker to store a message")

    async def restart_broker(self) -> None:
        """Kills the broker and starts it again; returns when both were noticed."""
        self.server.kill()
        await eventually(lambda: not self.bus.connected)
        self.server.restart()
        await eventually(lambda: self.bus.connected)

    async def lose_stream(self, stream: str) -> None:
        """Deletes a stream with all that it holds and makes it anew."""
        await self.bus._js.delete_stream(stream)
        await self.bus.ensure_streams()

    async def message_count(self, stream: str, subject: str) -> int:
        info = await self.bus._js.stream_info(stream, subjects_filter=subject)
        return sum((info.state.subjects or {}).values())

    async def consumer_count(self, stream: str) -> int:
        return int((await self.bus._js.stream_info(stream)).state.consumer_count)


async def run_until_killed(world: World, directory: Path, duty: str, step: str, when: str) -> int:
    """Runs a duty in a process that kills itself before or after a step; its exit status."""
    addresses = [world.server.url, f"sqlite:///{directory}/tasks.db", f"file://{directory}/objects"]
    process = await asyncio.create_subprocess_exec(sys.executable, DYING, *addresses, duty, step, when)
    return await process.wait()
