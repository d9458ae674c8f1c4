"""Which recipe trains which modality."""

from collections.abc import Callable
from importlib import import_module

from trainer_service.recipes.config import Job
from trainer_service.recipes.errors import NotImplementedYet
from trainer_service.recipes.support import RECIPES, problems_of

Train = Callable[..., None]


def recipe_for(job: Job) -> Train:
    """The function that trains a job. Raises NotImplementedYet listing what this version cannot do."""
    if problems := problems_of(job.finetune):
        listed = [str(problem) for problem in problems]
        raise NotImplementedYet("; ".join(listed), listed)
    train: Train = import_module(RECIPES[job.finetune.modality]).train
    return train
