"""The loss of replies: cross entropy of the tokens that have a label, given all tokens before them."""

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from modelkit.chat import IGNORED
from trainer_service.recipes.data import Batch
from trainer_service.recipes.precision import Precision
from trainer_service.recipes.world import World


def reply_loss(model: nn.Module, batch: Batch, device: torch.device) -> torch.Tensor:
    """The sum over all labelled tokens of a batch.

    Only columns that some row has a label in go through the output layer. No attention mask is needed: rows are padded
    on the right, where a causal model cannot look.
    """
    targets = batch.labels[:, 1:]
    columns = (targets != IGNORED).any(dim=0).nonzero().flatten()
    if not len(columns):
        columns = torch.zeros(1, dtype=torch.long)
    targets = targets[:, columns].to(device, non_blocking=True)
    columns = columns.to(device, non_blocking=True)
    ids = batch.input_ids.to(device, non_blocking=True)
    if takes_columns(model):
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=columns).logits
    else:
        logits = model(input_ids=ids, use_cache=False).logits[:, columns]
    return functional.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )


def mean_loss(model: nn.Module, batches: Iterable[Batch], formats: Precision, world: World) -> float:
    """The mean over all labelled tokens of the batches of all processes."""
    total, tokens = torch.zeros((), dtype=torch.float64, device=world.device), 0
    model.eval()
    with torch.no_grad(), formats.autocast(world.device):
        for batch in batches:
            total += reply_loss(model, batch, world.device)
            tokens += int((batch.labels[:, 1:] != IGNORED).sum())
    model.train()
    losses, count = world.sum([float(total), tokens])
    return losses / max(count, 1)


def takes_columns(model: Any) -> bool:
    """The model can compute the output of chosen positions only."""
    model = getattr(model, "module", model)
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    return "logits_to_keep" in inspect.signature(model.forward).parameters
