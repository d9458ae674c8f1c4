"""python -m export_service.recipes JOB_DIR: does one export in this process, events on standard output."""

import sys

from export_service.recipes.entry import run_job
from workerkit.child.entry import main

if __name__ == "__main__":
    sys.exit(main("export_service.recipes", run_job))
