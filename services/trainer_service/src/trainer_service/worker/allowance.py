"""What is left of the checkpoint quota of a task's owner, as far as the worker can know while it trains."""

import math
from collections.abc import Callable

from tunesmith.task.v1 import quota_service_pb2
from tunesmith.task.v1 import task_service_pb2 as task_service
from workerkit.lease import boot_clock

UNLIMITED = -1
# A checkpoint that was stored so long ago has been counted by the task service.
SETTLED_SECONDS = 15.0


class Allowance:
    """Begins with what the claim said. Heartbeats tell of what others store, of a new month and of a raised quota.

    The task service counts a checkpoint when its fact arrives. Until it can know of the last one that was stored here,
    the smaller of its figure and the worker's own counts. Owners with several workers may store a few too many.
    """

    def __init__(
        self, told: task_service.CheckpointAllowance | None, *, clock: Callable[[], float] = boot_clock
    ) -> None:
        self._clock = clock
        self._remaining = UNLIMITED
        self._stored_at = -math.inf
        self.stops = False
        if told is not None:
            self._take(told, told.remaining)

    def heard(self, answer: task_service.HeartbeatTaskResponse, sent: float) -> None:
        """Takes in the answer to a heartbeat that was sent at a time of the clock."""
        if not answer.HasField("allowance"):
            return
        told = answer.allowance.remaining
        settled = sent - self._stored_at >= SETTLED_SECONDS
        trusted = settled or UNLIMITED in (told, self._remaining)
        self._take(answer.allowance, told if trusted else min(told, self._remaining))

    def _take(self, told: task_service.CheckpointAllowance, remaining: int) -> None:
        self._remaining = remaining
        self.stops = told.exhausted_action == quota_service_pb2.QUOTA_ACTION_STOP

    def stored(self) -> None:
        """A checkpoint was stored."""
        self._stored_at = self._clock()
        if self._remaining > 0:
            self._remaining -= 1

    def allows(self, waiting: int = 0) -> bool:
        """Whether one more may be stored beside those that wait for it already."""
        return self._remaining == UNLIMITED or self._remaining > waiting
