"""Forward passes of a language model over a batch, without the logits that nobody asks for.

Logits are computed a chunk of tokens at a time, so those of all tokens never exist together (the idea of Cut Your
Losses, arXiv:2411.09009, and of the Liger kernels, arXiv:2410.10989).
"""

import inspect
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from modelkit.attention import ARCHITECTURES, Segments
from modelkit.collation import Batch
from modelkit.encoded import IGNORED
from modelkit.tiled_losses import tiled_losses

CHUNK_LOGITS = {"cpu": 1 << 23, "cuda": 1 << 28}
LEAST_CHUNK = 128


def base_of(model: Any) -> Any:
    """The model without what PEFT wraps it in; its adapted layers stay."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def inputs(batch: Batch) -> dict[str, Any]:
    """What a model is called with."""
    given: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
    if batch.position_ids is not None:
        given |= {"position_ids": batch.position_ids, "segments": Segments(batch.lengths)}
    return given


def head_is_linear(model: Any) -> bool:
    """Whether a model's logits are no more than one linear layer of its last hidden states."""
    return base_of(model).config.model_type in ARCHITECTURES


def takes_columns(model: Any) -> bool:
    """Whether a model can be asked for the logits of some columns alone."""
    return "logits_to_keep" in inspect.signature(base_of(model).forward).parameters


def chunks(tokens: int, head: Any, device: torch.device) -> list[tuple[int, int]]:
    """Ranges of tokens of like size whose logits fit in the room there is for them."""
    most = max(LEAST_CHUNK, CHUNK_LOGITS.get(device.type, CHUNK_LOGITS["cpu"]) // int(head.out_features))
    count = -(-tokens // most)
    return [(tokens * at // count, tokens * (at + 1) // count) for at in range(count)]


def token_losses(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The cross entropy of each labelled token, in float32, and the flat position in the batch's labels that it has.

    No gradients; the batch is on the model's device. No attention mask is needed: rows are padded on the right, where
    a causal model cannot look.
    """
    targets = functional.pad(batch.labels[:, 1:], (0, 1), value=IGNORED)
    chosen = (targets != IGNORED).flatten().nonzero().flatten()
    wanted = targets.flatten()[chosen]
    with torch.no_grad():
        if not head_is_linear(model):
            return _through_model(model, batch, targets), chosen + 1
        base = base_of(model)
        hidden = base.base_model(**inputs(batch)).last_hidden_state.flatten(0, 1)[chosen]
        head = base.get_output_embeddings()
        if _is_plain(head) and hidden.device.type == "cpu" and len(wanted):
            return tiled_losses(hidden, head.weight, head.bias, wanted), chosen + 1
        losses = torch.zeros(len(wanted), dtype=torch.float32, device=hidden.device)
        for first, last in chunks(len(wanted), head, hidden.device):
            losses[first:last] = _cross_entropy(head(hidden[first:last]), wanted[first:last])
    return losses, chosen + 1


def class_logits(model: Any, batch: Batch) -> torch.Tensor:
    """What a classifier with a score layer says of each sequence, told from its last token: (sequences, classes)."""
    base = base_of(model)
    hidden = base.base_model(**inputs(batch)).last_hidden_state
    lengths = torch.tensor(batch.lengths, device=hidden.device)
    if batch.position_ids is not None:
        last = hidden[0, lengths.cumsum(0) - 1]
    else:
        last = hidden[torch.arange(len(lengths), device=hidden.device), lengths - 1]
    scores: torch.Tensor = base.score(last)
    return scores


def labelled_logits(model: nn.Module, batch: Batch, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the columns in which some row has a target, and the targets there; of models with a head of their own.

    Shapes (rows, columns, tokens known) and (rows, columns).
    """
    columns = (targets != IGNORED).any(dim=0).nonzero().flatten()
    if not len(columns):
        columns = torch.zeros(1, dtype=torch.long, device=targets.device)
    if takes_columns(model):
        logits = model(**inputs(batch), logits_to_keep=columns).logits
    else:
        logits = model(**inputs(batch)).logits[:, columns]
    return logits, targets[:, columns]


def _through_model(model: nn.Module, batch: Batch, targets: torch.Tensor) -> torch.Tensor:
    logits, wanted = labelled_logits(model, batch, targets)
    chosen = wanted != IGNORED
    return _cross_entropy(logits[chosen], wanted[chosen])


def _is_plain(head: nn.Module) -> bool:
    """Whether a layer is its weight and bias alone, without an adapter or a hook."""
    return type(head) is nn.Linear and not head._forward_hooks and not head._forward_pre_hooks


def _cross_entropy(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits.float(), wanted, reduction="none")
