"""What a worker's attempts are for: one kind of work, made for each claimed task."""

from pathlib import Path
from typing import Protocol

from tunesmith.task.v1 import task_service_pb2 as task_service
from workerkit.endings import Ending
from workerkit.intent import Control
from workerkit.lease import Lease
from workerkit.reporter import Reporter


class Work(Protocol):
    """The work of one attempt. Cancelling `run` leaves everything at once: a child dies with it."""

    async def run(self) -> Ending:
        """How the attempt ended. Raises Interrupted when it is another's, and what nobody expects to go wrong."""


class MakeWork(Protocol):
    """Makes the work of a claimed task. Its folder may not exist yet; it is removed after the attempt."""

    def __call__(
        self,
        claim: task_service.ClaimTaskResponse,
        folder: Path,
        control: Control,
        lease: Lease,
        reporter: Reporter,
        /,
    ) -> Work: ...
