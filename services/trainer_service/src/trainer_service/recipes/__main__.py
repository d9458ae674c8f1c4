"""`python -m trainer_service.recipes JOB_DIR` trains a job; its events are JSON lines on standard output."""

import sys

from trainer_service.recipes.entry import run_job
from workerkit.child.entry import main

if __name__ == "__main__":
    sys.exit(main("trainer_service.recipes", run_job))
