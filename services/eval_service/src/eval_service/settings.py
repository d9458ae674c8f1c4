"""Settings of the evaluation service."""

from pydantic import Field

from eval_service.generation.settings import GenerationSettings
from eval_service.recipes.job import SUITE_STALL_SECONDS
from workerkit.settings import WorkerSettings


class EvalSettings(GenerationSettings, WorkerSettings):
    """What every service with workers has, and what live generation needs; a port of its own."""

    port: int = Field(50053, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    suite_stall_seconds: float = Field(
        SUITE_STALL_SECONDS, gt=0, description="Time without a forward pass after which a suite counts as hanging."
    )
