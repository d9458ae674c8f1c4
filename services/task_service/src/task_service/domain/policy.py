"""When a failed attempt is followed by another, and how long an attempt lives without a sign of life."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Policy:
    """Times are in seconds; max_attempts counts attempts in a row that saved no new checkpoint."""

    max_attempts: int = 3
    backoff_initial: float = 1.0
    backoff_limit: float = 60.0
    lease_seconds: float = 30.0

    def backoff(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row: doubling, up to the limit."""
        exponent = min(max(failures - 1, 0), 32)
        return float(min(self.backoff_limit, self.backoff_initial * 2**exponent))

    def lease_is_alive(self, heartbeat: int, now: int) -> bool:
        """Whether a heartbeat (microseconds) is recent. One from a far future, left by a changed clock, is not."""
        return abs(now - heartbeat) < self.lease_seconds * 1_000_000
