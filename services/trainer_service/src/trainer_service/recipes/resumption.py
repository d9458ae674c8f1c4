"""Decides whether a job may go on from a checkpoint, and takes over what it changes on purpose."""

from pathlib import Path
from typing import Any

from modelkit.identity import ORIGIN
from parameterkit.continuation import differences, refusals
from trainer_service.recipes.checkpoint_files import STATE, missing_from
from trainer_service.recipes.config import Job
from trainer_service.recipes.errors import CheckpointUnusable
from trainer_service.recipes.identity import origin_of, other_base
from trainer_service.recipes.saving import read_state
from workerkit.child.events import WARNING, EventWriter

RATE = "training.learning_rate"


def require_resumable(job: Job, checkpoint: Path, events: EventWriter) -> None:
    """Compares a job with what its checkpoint was made from; differences that it can live with are told, one a line.

    Raises CheckpointUnusable naming all files that are missing, or both sides of what must not differ.
    """
    if missing := missing_from(checkpoint):
        problems = [f"{checkpoint.name} has no {name}" for name in missing]
        raise CheckpointUnusable(
            f"{checkpoint.name} cannot be gone on from: it has no {', no '.join(missing)}", problems
        )
    before, now = read_state(checkpoint).get(ORIGIN), origin_of(job)
    if not isinstance(before, dict) or before.keys() != now.keys():
        raise CheckpointUnusable(f"{STATE} of {checkpoint.name} does not say what the training was made from")
    if problems := _refusals(before, now):
        raise CheckpointUnusable(f"{checkpoint.name} is of another training: {'; '.join(problems)}", problems)
    if before["dataset_sha256"] != now["dataset_sha256"]:
        events.log(f"the dataset is not the one that {checkpoint.name} was trained on", level=WARNING)
    for name, (old, new) in differences(before["parameters"], now["parameters"]).items():
        events.log(f"{name} was {old!r} when {checkpoint.name} was saved and is {new!r} now", level=WARNING)


def take_over(saved: dict[str, Any], fresh: dict[str, Any], rate_ratio: float) -> dict[str, Any]:
    """The saved state of an optimiser or a schedule with the settings of the present job.

    rate_ratio is how many times as high the learning rate is now.
    """
    for old, new in zip(saved.get("param_groups", ()), fresh.get("param_groups", ()), strict=False):
        old.update({name: new[name] for name in ("weight_decay", "betas", "eps") if name in old and name in new})
    if rate_ratio != 1.0:
        for group in saved.get("param_groups", ()):
            group.update({name: rate_ratio * group[name] for name in ("lr", "initial_lr") if name in group})
        for name in ("base_lrs", "_last_lr"):
            if name in saved:
                saved[name] = [rate_ratio * rate for rate in saved[name]]
    return saved


def rate_ratio(state: dict[str, Any], job: Job) -> float:
    """How many times as high a job's learning rate is as that which trainer_state.json tells of."""
    before = float(state[ORIGIN]["parameters"][RATE])
    return job.finetune.training.learning_rate / before


def _refusals(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    same_base = before["base_model_sha256"] == now["base_model_sha256"]
    others = [] if same_base else [other_base(before["base_model"], now["base_model"])]
    return others + refusals(before["parameters"], now["parameters"])
