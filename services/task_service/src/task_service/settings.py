"""Settings of the task service."""

from pathlib import Path

from pydantic import Field

from servicekit.settings import ServiceSettings
from task_service.domain.policy import Policy


class TaskServiceSettings(ServiceSettings):
    """Where tasks are kept, who checks them, and how patient the service is. Times are in seconds."""

    port: int = Field(50051, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    database_url: str = Field(
        "sqlite:////var/lib/tunesmith/tasks.db", description="sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME."
    )
    trainer_target: str | None = Field(
        None, description="Address of the trainer service, which checks trainings before they are accepted."
    )
    eval_service_target: str | None = Field(
        None, description="Address of the evaluation service, which checks evaluations before they are accepted."
    )
    export_service_target: str | None = Field(
        None, description="Address of the export service, which checks exports before they are accepted."
    )
    check_spec_seconds: float = Field(30.0, gt=0, description="Time for that check.")
    check_dataset_seconds: float = Field(600.0, gt=0, description="Time for checking the rows of an uploaded dataset.")
    max_upload_bytes: int = Field(10 * 1024**3, gt=0, description="Largest file that may be uploaded as a dataset.")
    upload_dir: Path | None = Field(
        None, description="Where uploads lie until they are stored; the system's temporary directory without one."
    )
    uploads_at_once: int = Field(16, ge=1, description="Uploads taken in at once; more are refused.")
    uploads_per_user: int = Field(4, ge=1, description="Uploads of one user taken in at once.")
    dataset_bytes_per_user: int = Field(
        0, ge=0, description="Bytes that the uploaded datasets of one user may have in all; 0 is unlimited."
    )
    checkpoint_quota: int = Field(
        -1, ge=-1, description="Checkpoints a month of users for whom no administrator set a quota; -1 is unlimited."
    )
    max_attempts: int = Field(3, ge=1, description="Attempts in a row without a new checkpoint.")
    backoff_seconds: float = Field(1.0, ge=0, description="Pause before the second attempt; doubles after that.")
    backoff_limit_seconds: float = Field(60.0, ge=0, description="Longest pause between two attempts.")
    lease_seconds: float = Field(30.0, gt=0, description="Silence after which a worker counts as lost.")
    reconcile_seconds: float = Field(5.0, gt=0, description="Pause between two comparisons of database and queue.")
    dispatch_grace_seconds: float = Field(
        10.0, ge=0, description="Time for a message to reach the queue before it counts as vanished."
    )
    leader_seconds: float = Field(5.0, gt=0, description="Silence after which another replica runs the duties.")

    def policy(self) -> Policy:
        """The rules of retrying."""
        return Policy(
            max_attempts=self.max_attempts,
            backoff_initial=self.backoff_seconds,
            backoff_limit=self.backoff_limit_seconds,
            lease_seconds=self.lease_seconds,
        )
