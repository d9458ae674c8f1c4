"""Runs one export in this process; whatever happens ends as one last event."""

from pathlib import Path

from export_service.recipes.exporting import export
from workerkit.child import entry
from workerkit.child.failures import Outlook

OUTLOOK = Outlook(
    unforeseen="EXPORT_FAILED",
    memory_advice=("export on a machine with more memory", "choose types without an importance matrix"),
    disk_full="free space and export again; nothing of this attempt is left",
)


def run_job(directory: Path, descriptor: int | None = None) -> int:
    """Does the export in a directory; 0 when it is done or stopped, 1 after an error event.

    Events go to the descriptor, else to the one that TUNESMITH_EVENTS_FD names, else to standard output.
    """
    return entry.run_job(directory, export, OUTLOOK, descriptor)
