"""How many checkpoints a user may store in a month, and when that is nearly or wholly spent."""

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum

UNLIMITED = -1
LOW_SHARE = 10  # a tenth
LOW_COUNT = 5

_SECOND = 1_000_000


class QuotaAction(IntEnum):
    """What happens to a running task whose owner's allowance is spent."""

    CONTINUE_UNSAVED = 1
    STOP = 2


@dataclass(frozen=True, slots=True)
class Quota:
    """A monthly allowance, what is used of it in this month, and what happens when it is spent."""

    allowance: int = UNLIMITED
    used: int = 0
    action: QuotaAction = QuotaAction.CONTINUE_UNSAVED

    @property
    def remaining(self) -> int:
        """Checkpoints left; UNLIMITED without a limit. More may be used than was allowed: what must not be lost."""
        return UNLIMITED if self.allowance == UNLIMITED else max(0, self.allowance - self.used)

    @property
    def exhausted(self) -> bool:
        """Nothing is left."""
        return self.remaining == 0

    @property
    def low(self) -> bool:
        """At most a tenth is left, or at most 5; of an allowance below 10, at most half."""
        threshold = max(self.allowance // LOW_SHARE, min(LOW_COUNT, self.allowance // 2))
        return self.allowance != UNLIMITED and self.remaining <= threshold


def period(time: int) -> int:
    """The month of a time in microseconds since 1970, in UTC, as year and month: 202611."""
    moment = datetime.fromtimestamp(time // _SECOND, UTC)
    return moment.year * 100 + moment.month


def next_period(time: int) -> int:
    """When the month after that of a time begins, both in microseconds."""
    moment = datetime.fromtimestamp(time // _SECOND, UTC)
    year, month = divmod(moment.year * 12 + moment.month, 12)
    return int(datetime(year, month + 1, 1, tzinfo=UTC).timestamp()) * _SECOND
