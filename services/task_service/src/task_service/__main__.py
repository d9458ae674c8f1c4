"""Starts the task service: python -m task_service."""

from servicekit import runtime
from servicekit.settings import load
from task_service.settings import TaskServiceSettings
from task_service.setup import run

if __name__ == "__main__":
    settings = load(TaskServiceSettings)
    runtime.run(lambda: run(settings), settings.log_level)
