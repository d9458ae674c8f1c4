"""The trainer service as a process, whose children follow scripts in place of recipes. It dies with the test."""

import signal

from servicekit import runtime
from servicekit.settings import load
from trainer_service import setup
from trainer_service.settings import TrainerSettings
from workerkit.fork_server import PR_SET_PDEATHSIG, set_process_option

if __name__ == "__main__":
    set_process_option(PR_SET_PDEATHSIG, signal.SIGKILL)
    setup.PRELOAD, setup.ENTRY = "light_preload", "training_jobs:run"
    settings = load(TrainerSettings)
    runtime.run(lambda: setup.run(settings), settings.log_level)
