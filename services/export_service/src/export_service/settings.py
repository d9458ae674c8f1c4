"""Settings of the export service."""

from pydantic import Field

from workerkit.settings import WorkerSettings


class ExportSettings(WorkerSettings):
    """What every service with workers has; a port of its own."""

    port: int = Field(50054, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
