"""Brings the model to train into memory, with its adapter."""

from typing import Any

from modelkit.loading import load_model
from trainer_service.recipes import randomness
from trainer_service.recipes.adapters import add_adapter
from trainer_service.recipes.config import Job
from trainer_service.recipes.precision import Precision
from trainer_service.recipes.world import World


def prepare_model(job: Job, formats: Precision, world: World) -> Any:
    """The model to train; what a full training is resumed from takes the place of the base model."""
    training, parameters = job.finetune.training, job.finetune.language_model
    randomness.seed(training.seed)
    lora = parameters.method == "LORA"
    source = job.model_dir if lora or job.resume_from is None else job.resume_from
    model: Any = load_model(source, dtype=formats.weights, device=world.device)
    if training.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    if lora:
        model = add_adapter(model, parameters.lora, base_model=job.model_dir)
    model.to(world.device)
    model.train()
    return model


def stop_ids(config: Any) -> list[int]:
    """The tokens that end a reply, as the model's configuration names them."""
    ids = getattr(config, "eos_token_id", None)
    return [int(token) for token in (ids if isinstance(ids, list) else [] if ids is None else [ids])]
