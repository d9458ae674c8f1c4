"""A polite request to end: SIGTERM or SIGINT sets a flag that a job looks at between its steps."""

import signal
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Whether this process was asked to save and end."""

    def __init__(self) -> None:
        self.requested = False

    def listen(self) -> None:
        """Takes over the signals, also those that came while they were blocked; only from the main thread."""
        for number in SIGNALS:
            signal.signal(number, self._request)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def _request(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True
