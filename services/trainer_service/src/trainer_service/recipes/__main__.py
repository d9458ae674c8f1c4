"""`python -m trainer_service.recipes JOB_DIR` trains a job; its events are JSON lines on standard output."""

import os
import sys
from pathlib import Path

from trainer_service.recipes.entry import EVENTS_FD, run_job


def main() -> int:
    """Keeps standard output for events alone: whatever libraries print goes to standard error."""
    if len(sys.argv) != 2:
        print("usage: python -m trainer_service.recipes JOB_DIR", file=sys.stderr)
        return 2
    if EVENTS_FD in os.environ:
        return run_job(Path(sys.argv[1]))
    events = os.dup(1)
    os.dup2(2, 1)
    return run_job(Path(sys.argv[1]), events)


if __name__ == "__main__":
    sys.exit(main())
