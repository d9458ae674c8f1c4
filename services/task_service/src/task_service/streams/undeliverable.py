"""Tells the life cycle of a task that the queue gave up on its message."""

from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncSession

from task_service.commands.core import Core
from task_service.commands.recorder import Recorder
from task_service.database import lifecycles
from task_service.database.access import current_time
from task_service.database.tasks import TaskRepository
from task_service.domain.lifecycle import Failure

REASON = "UNDELIVERABLE"


@dataclass(frozen=True, slots=True)
class Undeliverable:
    """A callable for DeadLetters."""

    core: Core

    async def __call__(self, task_id: str, attempt: int, what: str) -> None:
        """Has the task tried again or, after too many attempts, failed; nothing happens when it is past that attempt.

        Raises Unavailable.
        """

        async def work(session: AsyncSession) -> None:
            row = (await TaskRepository(session).lock([task_id])).get(task_id)
            if row is None or row.delete_time:
                return
            recorder = Recorder(session, self.core.outbox, await current_time(session))
            lifecycle = lifecycles.load(row)
            failure = Failure(REASON, f"the queue gave up on the message of attempt {attempt}: {what}")
            outcome = lifecycle.undeliverable(attempt, failure, recorder.now, self.core.policy)
            await recorder.apply(row, lifecycle, outcome)

        await self.core.database.transaction(work)
        self.core.outbox.wake()
