"""What every use case works with."""

from dataclasses import dataclass

from servicekit.outbox import Outbox
from task_service.database.access import Database
from task_service.domain.policy import Policy


@dataclass(frozen=True, slots=True)
class Core:
    """The database, the outbox in it, and the rules of retrying."""

    database: Database
    outbox: Outbox
    policy: Policy
