"""Starts the trainer service: python -m trainer_service."""

from servicekit import runtime
from servicekit.settings import load
from trainer_service.settings import TrainerSettings
from trainer_service.setup import run

if __name__ == "__main__":
    settings = load(TrainerSettings)
    runtime.run(lambda: run(settings), settings.log_level)
