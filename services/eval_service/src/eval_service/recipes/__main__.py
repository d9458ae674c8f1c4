"""`python -m eval_service.recipes JOB_DIR` evaluates a job; its events are JSON lines on standard output."""

import sys

from eval_service.recipes.entry import run_job
from workerkit.child import entry

if __name__ == "__main__":
    sys.exit(entry.main("eval_service.recipes", run_job))
