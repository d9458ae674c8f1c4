"""Settings of the trainer service."""

from pathlib import Path

from pydantic import Field, field_validator

from workerkit.settings import WorkerSettings, require_absolute


class TrainerSettings(WorkerSettings):
    """What every service with workers has, and what estimates and training need. Its libraries are always loaded."""

    port: int = Field(50052, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    warm_seconds: float = Field(
        0.0, ge=0, description="Time that libraries stay loaded for the next child; 0 loads them at start, for good."
    )
    calibration_file: Path | None = Field(
        None, description="How fast earlier trainings were; workers of one machine may share it. Default: in work_dir."
    )
    cpu_fallback: bool = Field(
        False, description="Train on the CPU, and say so in the log, when a task names GPUs and the machine has none."
    )

    @field_validator("calibration_file")
    @classmethod
    def _absolute_file(cls, value: Path | None) -> Path | None:
        if value is not None:
            require_absolute(value)
        return value

    def calibration(self) -> Path:
        """Where the speeds of earlier trainings are kept."""
        return self.calibration_file or self.work_dir / "calibration.json"
