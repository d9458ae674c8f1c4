"""The finished adapter merged into its base model, when a job asks for it."""

from modelkit.errors import ModelkitError
from modelkit.merging import merge
from trainer_service.recipes.config import Job
from trainer_service.recipes.support import ADAPTER_METHODS
from workerkit.child.events import WARNING, EventWriter

MERGED = "merged"


def merge_if_asked(job: Job, events: EventWriter) -> None:
    """Writes the merged model to `<output>/merged` when the job asks for it and has trained an adapter.

    The adapter is read from `<output>`. A merge that fails is told in the log and costs nobody the adapter, which is
    whole on disk already.
    """
    parameters = job.finetune.language_model
    if not parameters.merge_after_training:
        return
    if parameters.method not in ADAPTER_METHODS:
        events.log("merge_after_training has no effect: a full training has no adapter to merge")
        return
    events.log(f"merging the adapter into {job.model_dir.name}")
    try:
        merge(job.model_dir, job.output_dir, job.output_dir / MERGED)
    except (ModelkitError, OSError) as error:
        events.log(f"the adapter is saved, but it could not be merged: {error}", level=WARNING)
