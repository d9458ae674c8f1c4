"""Brings the model to train into memory: whole, or frozen with an adapter, quantized or not, with a head or without."""

from collections.abc import Sequence
from typing import Any

from modelkit.loading import load_model
from trainer_service.recipes import quantization, randomness
from trainer_service.recipes.adapters import add_adapter, load_adapter
from trainer_service.recipes.config import Job
from trainer_service.recipes.precision import Precision
from trainer_service.recipes.support import ADAPTER_METHODS
from trainer_service.recipes.world import World
from workerkit.child.events import EventWriter


def prepare_model(
    job: Job, formats: Precision, world: World, *, labels: Sequence[str] = (), events: EventWriter | None = None
) -> Any:
    """The model to train; what a full training is resumed from takes the place of the base model.

    labels are the classes of a classification; events are told what differs from the wish. Raises
    InvalidModel, or InvalidJob when the adapter does not fit the model.
    """
    training, parameters = job.finetune.training, job.finetune.language_model
    events = events or EventWriter(None)
    classes = labels if parameters.objective == "CLASSIFICATION" else ()
    randomness.seed(training.seed)
    adapts = parameters.method in ADAPTER_METHODS
    source = job.model_dir if adapts or job.resume_from is None else job.resume_from
    config = None
    if parameters.method == "QLORA":
        config, notes = quantization.configure(parameters.quantization, world.device)
        for note in notes:
            events.log(note)
    model: Any = load_model(
        source, dtype=formats.weights, device=world.device, labels=classes or None, quantization=config
    )
    if config is not None:
        quantization.prepare_for_training(model)
    if training.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    if adapts:
        model = add_adapter(model, parameters.lora, base_model=job.model_dir, classifies=bool(classes))
        if job.resume_from:
            load_adapter(model, job.resume_from)
    if config is None:
        model.to(world.device)
    model.train()
    return model
