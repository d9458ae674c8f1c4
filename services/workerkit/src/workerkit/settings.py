"""Settings of every service that has workers."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from servicekit.objects import directory_of
from servicekit.settings import ServiceSettings


def require_absolute(path: Path) -> None:
    """Raises ValueError for a path that depends on where a program is started."""
    if not path.is_absolute():
        raise ValueError(f"{path} is not an absolute path")


class WorkerSettings(ServiceSettings):
    """Where it works, what it may read and write, and how patient it is. Times are in seconds."""

    task_service_target: str = Field("127.0.0.1:50051", description="Address of the task service.")
    allowed_roots: Annotated[tuple[Path, ...], NoDecode] = Field(
        (), description="Directories with models, datasets and outputs, joined by colons."
    )
    private_paths: Annotated[tuple[Path, ...], NoDecode] = Field(
        (), description="What users may not name although an allowed root contains it, joined by colons."
    )
    output_root: Path = Field(
        Path("/var/lib/tunesmith/outputs"), description="Results of tasks that name no directory."
    )
    work_dir: Path = Field(Path("/var/lib/tunesmith/work"), description="Scratch space: what was not uploaded yet.")
    data_cache_bytes: int = Field(
        20 << 30, ge=0, description="Size of the cache in work_dir of converted, indexed and tokenised data, in bytes."
    )
    converted_models_bytes: int = Field(
        100 << 30, ge=0, description="Size of the converted base models in work_dir, in bytes; unused ones go."
    )
    pool: str = Field("default", pattern="^[a-z0-9-]{1,32}$", description="Pool of workers that this one is in.")
    slots: int = Field(1, ge=0, le=64, description="Tasks worked on at the same time; 0 only answers questions.")
    lease_seconds: float = Field(30.0, gt=0, description="Silence after which the queue gives a task to another.")
    stop_grace_seconds: float = Field(
        60.0, ge=0, description="Time to save when a user stops a task; its label stop_grace_seconds wins."
    )
    release_seconds: float = Field(30.0, ge=0, description="Time to save and give tasks back when the service stops.")
    stall_seconds: float = Field(1800.0, gt=0, description="Silence of a child process after which it is killed.")
    warm_seconds: float = Field(
        300.0, ge=0, description="Time that libraries stay loaded for the next child; 0 loads them at start, for good."
    )

    @field_validator("allowed_roots", "private_paths", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(filter(None, value.split(os.pathsep))) if isinstance(value, str) else value

    @field_validator("allowed_roots", "private_paths", "output_root", "work_dir")
    @classmethod
    def _absolute(cls, value: Path | tuple[Path, ...]) -> Path | tuple[Path, ...]:
        for path in value if isinstance(value, tuple) else (value,):
            require_absolute(path)
        return value

    def roots(self) -> tuple[Path, ...]:
        """Every directory beneath which users may name paths."""
        return (*self.allowed_roots, self.output_root)

    def private(self) -> tuple[Path, ...]:
        """What users may not name even there: working directories and objects hold what belongs to all of them."""
        objects = directory_of(self.object_store_url)
        return (*self.private_paths, self.work_dir, *((objects,) if objects else ()))
