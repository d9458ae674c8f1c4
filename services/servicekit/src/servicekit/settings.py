"""Settings that every service has, read from TUNESMITH_* environment variables."""

import ipaddress
import sys
from pathlib import Path
from typing import TypeVar

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

S = TypeVar("S", bound=BaseSettings)


class ServiceSettings(BaseSettings):
    """Where a service listens, whom it trusts and what it talks to."""

    model_config = SettingsConfigDict(env_prefix="TUNESMITH_", extra="ignore", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(0, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    public_key_file: Path | None = Field(None, description="PEM of the key that tokens are verified with.")
    service_token_file: Path | None = Field(None, description="File with this service's own token.")
    nats_url: str = Field("nats://127.0.0.1:4222", repr=False, description="Address of the NATS server.")
    nats_user: str | None = Field(None, description="User at the NATS server.")
    nats_password: SecretStr | None = Field(None, description="Password at the NATS server.")
    object_store_url: str = Field(
        "file:///var/lib/tunesmith/objects", repr=False, description="file:// or s3:// address."
    )
    otlp_endpoint: str | None = Field(None, description="OpenTelemetry collector; telemetry is off without one.")
    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="Least severe log level.")
    drain_seconds: float = Field(10.0, ge=0, description="Time for running calls to end when the service stops.")

    @model_validator(mode="after")
    def _authenticated_beyond_loopback(self) -> "ServiceSettings":
        if self.public_key_file is None and not is_loopback(self.host):
            raise ValueError(
                f"host {self.host} can be reached from other machines, but public_key_file is not set: "
                "set TUNESMITH_PUBLIC_KEY_FILE, or listen on 127.0.0.1"
            )
        return self

    def service_token(self) -> str | None:
        """This service's own bearer token, None when the deployment has no authentication."""
        return self.service_token_file.read_text().strip() if self.service_token_file else None

    def nats_password_value(self) -> str | None:
        """The NATS password in the clear, for the connection only."""
        return self.nats_password.get_secret_value() if self.nats_password else None


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def load(kind: type[S]) -> S:
    """Reads settings from the environment; prints every problem and exits with 2 when there are any."""
    try:
        return kind()
    except ValidationError as error:
        for item in error.errors():
            name = "_".join(str(part) for part in item["loc"]).upper()
            print(f"TUNESMITH_{name}: {item['msg']}" if name else item["msg"], file=sys.stderr)
        raise SystemExit(2) from None
