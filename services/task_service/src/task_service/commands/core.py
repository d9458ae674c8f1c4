"""What every use case works with."""

from dataclasses import dataclass

from servicekit.outbox import Outbox
from task_service.database.access import Database
from task_service.domain.policy import Policy
from task_service.domain.quota import UNLIMITED


@dataclass(frozen=True, slots=True)
class Core:
    """The database, the outbox in it, the rules of retrying, and the checkpoints a month of users without a quota."""

    database: Database
    outbox: Outbox
    policy: Policy
    checkpoint_quota: int = UNLIMITED
