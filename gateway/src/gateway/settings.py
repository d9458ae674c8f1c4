"""Settings of the gateway."""

from pathlib import Path

from pydantic import Field

from servicekit.settings import ServiceSettings


class GatewaySettings(ServiceSettings):
    """What every service has, the addresses of the services, and the limits of HTTP.

    Lists are JSON arrays in the environment, for example TUNESMITH_ALLOWED_HOSTS='["tunesmith.example.org"]'.
    """

    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    task_target: str = Field("127.0.0.1:50051", description="gRPC address of the task service.")
    trainer_target: str = Field("127.0.0.1:50052", description="gRPC address of the trainer service.")
    eval_target: str = Field("127.0.0.1:50053", description="gRPC address of the evaluation service.")
    export_target: str = Field("127.0.0.1:50054", description="gRPC address of the export service.")
    allowed_hosts: tuple[str, ...] = Field((), description="Host names answered to, beside loopback and host itself.")
    cors_origins: tuple[str, ...] = Field((), description="Origins whose pages may call; none by default.")
    max_body_bytes: int = Field(4 * 1024 * 1024, ge=1024, description="Largest body of a request.")
    max_upload_bytes: int = Field(10 * 1024**3, ge=1024, description="Largest file of a form.")
    upload_dir: Path | None = Field(
        None, description="Where files of forms lie until a service has them; the system's temporary directory without."
    )
    uploads_at_once: int = Field(16, ge=1, description="Forms taken in at once; more are answered with 429.")
    uploads_per_user: int = Field(4, ge=1, description="Forms of one user taken in at once.")
    max_connections: int = Field(4096, ge=1, description="Connections at once; more are answered with 503.")
    request_seconds: float = Field(60.0, gt=0, description="Time for a service to answer a call that is no stream.")
    wait_seconds: float = Field(
        3600.0, gt=0, description="Time for the merge or the generation that a caller of the guide's routes waits for."
    )
    keepalive_seconds: float = Field(15.0, gt=0, description="Time between two signs of life on a quiet stream.")
    websocket_heartbeat_seconds: float = Field(30.0, gt=0, description="Time between two heartbeats on a WebSocket.")
    websocket_send_seconds: float = Field(30.0, gt=0, description="Time for a reader to take a message of a WebSocket.")
    access_log: bool = Field(True, description="Log each request: method, path, status, time, id.")
    finetuning_command: bool = Field(
        False, description="Let callers of /finetuning send a command; only for a trusted single-user deployment."
    )
