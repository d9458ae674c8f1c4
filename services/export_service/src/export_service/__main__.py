"""Starts the export service: python -m export_service."""

from export_service.settings import ExportSettings
from export_service.setup import run
from servicekit import runtime
from servicekit.settings import load

if __name__ == "__main__":
    settings = load(ExportSettings)
    runtime.run(lambda: run(settings), settings.log_level)
