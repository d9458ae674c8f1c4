"""Settings of the export service."""

from pydantic import Field

from servicekit.settings import ServiceSettings


class ExportSettings(ServiceSettings):
    """What every service has; a port of its own."""

    port: int = Field(50054, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
