"""Brings a job's model and data into memory, or says everything that is wrong with them."""

from typing import Any

from modelkit import attention
from modelkit.ending import end_replies, reply_ends
from modelkit.inspection import inspect
from modelkit.loading import quieten
from trainer_service.recipes import optimizers, precision, quantization
from trainer_service.recipes.config import Job
from trainer_service.recipes.data_setup import Data, prepare_data
from trainer_service.recipes.model_setup import prepare_model
from trainer_service.recipes.precision import Precision
from trainer_service.recipes.resumption import require_resumable
from trainer_service.recipes.support import ADAPTER_METHODS
from trainer_service.recipes.world import World
from workerkit.child.errors import OutputExists
from workerkit.child.events import EventWriter


def prepare(job: Job, events: EventWriter, world: World) -> tuple[Any, Data, Precision]:
    """The model on its device, the data, and the number formats. Raises RecipeError, ModelkitError or OSError."""
    if job.output_dir.exists() and any(job.output_dir.iterdir()):
        raise OutputExists(f"{job.output_dir} is not empty")
    if job.resume_from:
        require_resumable(job, job.resume_from, events)
    quieten()
    training, frozen = job.finetune.training, job.finetune.language_model.method in ADAPTER_METHODS
    stored = inspect(job.model_dir).dtype
    formats = precision.choose(training, world.device, frozen=frozen, stored=stored)
    precision.allow_tf32(training)
    for note in (*formats.notes, *optimizers.notes(training, world.device)):
        events.log(note)
    data = prepare_data(job, events, world)
    model = prepare_model(job, formats, world, labels=data.labels, events=events)
    attention.use_segments(model)
    if job.finetune.language_model.objective == "SUPERVISED":
        end_replies(model.generation_config, reply_ends(data.tokenizer))
    trained, total = quantization.count_parameters(model)
    events.log(
        f"training {trained:,} of {total:,} parameters ({trained / total:.2%}) on {len(data.batches):,} rows, "
        f"{world.device} x {world.size}, {str(formats.compute).removeprefix('torch.')}"
    )
    return model, data, formats
