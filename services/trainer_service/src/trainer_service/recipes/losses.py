"""The objectives: what a model's output for a batch costs, summed, so that any cutting into batches gives the same.

The loss of tokens is computed a chunk at a time, forwards and backwards at once, so the logits of all tokens never
exist together (the idea of Cut Your Losses, arXiv:2411.09009, and of the Liger kernels, arXiv:2410.10989).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from modelkit.chat import IGNORED
from modelkit.collation import Batch, collate
from modelkit.forwarding import base_of, chunks, class_logits, head_is_linear, inputs, labelled_logits
from trainer_service.recipes.precision import Precision
from trainer_service.recipes.world import World


class TokenLoss(nn.Module):
    """Cross entropy of the tokens that have a label, given all tokens before them. Wraps a causal language model.

    No attention mask is needed: rows are padded on the right, where a causal model cannot look. Of architectures whose
    logits are no more than one linear layer of the last hidden states, only labelled tokens pass that layer.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._plain = head_is_linear(model)

    def forward(self, batch: Batch) -> torch.Tensor:
        """The sum over all labelled tokens of a batch, which is on the model's device."""
        targets = batch.labels[:, 1:]
        if self._plain:
            base = base_of(self.model)
            hidden = base.base_model(**inputs(batch)).last_hidden_state[:, :-1]
            chosen = (targets != IGNORED).flatten().nonzero().flatten()
            head = base.get_output_embeddings()
            return linear_cross_entropy(hidden.flatten(0, 1)[chosen], head, targets.flatten()[chosen])
        logits, wanted = labelled_logits(self.model, batch, targets)
        return functional.cross_entropy(
            logits.flatten(0, 1).float(), wanted.flatten(), ignore_index=IGNORED, reduction="sum"
        )


class ClassLoss(nn.Module):
    """Cross entropy of the class of each sequence, told from its last token. Wraps a classifier with a score layer.

    While it evaluates it keeps the answers: pairs of the classes that sequences have and those that were told.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.answers: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, batch: Batch) -> torch.Tensor:
        """The sum over the sequences that have a class."""
        logits = self.logits(batch).float()
        if not self.training:
            self.answers.append((batch.classes, logits.argmax(-1)))
        return functional.cross_entropy(logits, batch.classes, ignore_index=-1, reduction="sum")

    def logits(self, batch: Batch) -> torch.Tensor:
        """Of shape (sequences, classes)."""
        return class_logits(self.model, batch)


def objective_of(name: str, model: nn.Module) -> TokenLoss | ClassLoss:
    """The objective of a job: SUPERVISED, PRETRAINING or CLASSIFICATION."""
    return ClassLoss(model) if name == "CLASSIFICATION" else TokenLoss(model)


def linear_cross_entropy(hidden: torch.Tensor, head: nn.Module, targets: torch.Tensor) -> torch.Tensor:
    """The sum of the cross entropies of head(hidden), of shapes (tokens, width) and (tokens,).

    Exact, also where the head is trained or has an adapter; its gradients are computed with the loss.
    """
    trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
    loss: torch.Tensor = _LinearCrossEntropy.apply(hidden, head, targets, *trained)
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, head: nn.Module, targets: torch.Tensor, *trained: nn.Parameter) -> Any:
        needs_gradients = any(ctx.needs_input_grad)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        hidden_gradient = torch.zeros_like(hidden)
        gradients: list[torch.Tensor | None] = [None] * len(trained)
        for first, last in chunks(len(targets), head, hidden.device):
            part = hidden[first:last].detach().requires_grad_(needs_gradients)
            wanted = targets[first:last, None]
            with torch.set_grad_enabled(needs_gradients):
                logits = head(part)
            scores = logits.detach().float().log_softmax(-1)
            total -= scores.gather(1, wanted).sum()
            if not needs_gradients:
                continue
            slope = scores.exp_()
            slope.scatter_add_(1, wanted, torch.full_like(wanted, -1, dtype=slope.dtype))
            found = torch.autograd.grad(logits, [part, *trained], slope.to(logits.dtype))
            hidden_gradient[first:last] = found[0]
            gradients = [new if old is None else old.add_(new) for old, new in zip(gradients, found[1:], strict=True)]
        ctx.save_for_backward(hidden_gradient, *(_or_zero(*pair) for pair in zip(gradients, trained, strict=True)))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: torch.Tensor) -> Any:
        hidden, *trained = ctx.saved_tensors
        return hidden * slope, None, None, *(gradient * slope for gradient in trained)


def _or_zero(gradient: torch.Tensor | None, parameter: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(parameter) if gradient is None else gradient


@dataclass(slots=True)
class Evaluation:
    """The mean loss of held-out rows, and what else is told of them by name."""

    loss: float
    extra: dict[str, float] = field(default_factory=dict)


def evaluate(
    objective: TokenLoss | ClassLoss, batches: Iterable[Batch], formats: Precision, world: World
) -> Evaluation:
    """The mean loss over everything that has a label in the batches of all processes; of classes also accuracy and F1
    (the mean of all classes that occur)."""
    own = list(batches)
    total, count = torch.zeros((), dtype=torch.float64, device=world.device), 0
    objective.eval()
    with torch.no_grad(), formats.autocast(world.device):
        for index in range(world.forwards(objective, len(own))):
            batch = own[index] if index < len(own) else collate([], pad_id=0)
            total += objective(batch.to(world.device))
            count += batch.targets
    objective.train()
    losses, everything = world.sum([float(total), count])
    extra = of_classes(objective, world) if isinstance(objective, ClassLoss) else {}
    return Evaluation(losses / max(everything, 1), extra)


def of_classes(objective: ClassLoss, world: World) -> dict[str, float]:
    """Accuracy and F1 of the answers that all processes have kept, which are then forgotten."""
    number = base_of(objective.model).config.num_labels
    table = torch.zeros(number, number, dtype=torch.float64)  # row: the class it has; column: the one it was taken for
    for actual, told in objective.answers:
        known = actual >= 0
        places = (actual * number + told)[known].cpu()
        table += torch.bincount(places, minlength=number * number).view(number, number)
    objective.answers.clear()
    table = torch.tensor(world.sum(table.flatten().tolist()), dtype=torch.float64).view(number, number)
    right, either = table.diag(), table.sum(0) + table.sum(1)
    scores = 2 * right[either > 0] / either[either > 0]
    return {
        "eval_accuracy": float(right.sum() / table.sum().clamp(min=1)),
        "eval_f1": float(scores.mean()) if len(scores) else 0.0,
    }
