"""What is refused now and may be asked for again soon."""

from servicekit.errors import ResourceExhausted

RETRY_AFTER_SECONDS = 5
QUEUE_FULL, MEMORY_BUSY = "GENERATION_QUEUE_FULL", "MEMORY_BUSY"


def later(message: str, reason: str) -> ResourceExhausted:
    """The error of a refusal that passes, with the time to wait; HTTP sends it as Retry-After."""
    return ResourceExhausted(message, reason=reason, metadata={"retry_after_seconds": str(RETRY_AFTER_SECONDS)})
