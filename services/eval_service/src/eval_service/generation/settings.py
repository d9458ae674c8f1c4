"""Settings of live generation."""

from pydantic import Field

from eval_service.generation.memory import default_limit
from eval_service.generation.models import Limits
from servicekit.settings import ServiceSettings


class GenerationSettings(ServiceSettings):
    """What models that answer may take. Times are in seconds."""

    generation_memory_bytes: int = Field(
        0, ge=0, description="Memory of all models that are loaded to answer; 0 means half of the machine's."
    )
    generation_idle_seconds: float = Field(
        600.0, gt=0, description="Time without a question after which a model leaves."
    )
    generation_at_once: int = Field(2, ge=1, le=64, description="Answers of one model that are written in turns.")
    generation_queue: int = Field(16, ge=0, le=10_000, description="Answers of one model that may wait beside those.")
    generation_context_tokens: int = Field(
        8192, ge=64, description="Longest conversation with its answer, in tokens; a model's own limit may be lower."
    )
    generation_cache_bytes: int = Field(
        20 << 30,
        gt=0,
        description="Size of the cache of checkpoints fetched to answer, in bytes; a larger checkpoint is refused.",
    )

    generation_stall_seconds: float = Field(
        300.0, gt=0, description="Time after which a model's process that should work and does nothing is ended."
    )

    def generation_limits(self) -> Limits:
        """The same for those who keep to it."""
        return Limits(
            memory=self.generation_memory_bytes or default_limit(),
            idle_seconds=self.generation_idle_seconds,
            at_once=self.generation_at_once,
            queue=self.generation_queue,
            context=self.generation_context_tokens,
            stall_seconds=self.generation_stall_seconds,
        )
