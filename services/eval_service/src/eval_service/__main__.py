"""Starts the evaluation service: python -m eval_service."""

from eval_service.settings import EvalSettings
from eval_service.setup import run
from servicekit import runtime
from servicekit.settings import load

if __name__ == "__main__":
    settings = load(EvalSettings)
    runtime.run(lambda: run(settings), settings.log_level)
