"""What a process does that was started and never gets to work."""

import signal
from pathlib import Path


def wait(directory: Path) -> int:
    """Waits until it is killed."""
    signal.pause()
    return 0
