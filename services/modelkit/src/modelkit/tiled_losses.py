"""Cross entropy through a linear layer to a large vocabulary, in tiles of logits that stay in a CPU's cache.

The sum of exponentials grows tile by tile under a maximum that may rise (online softmax, arXiv:1805.02867), so of each
logit nothing is written to memory and read again, and neither all logits of a token nor of all tokens exist together.
"""

import torch
from torch.nn import functional

TOKENS = 1024
ENTRIES = 2048  # of the vocabulary


def tiled_losses(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, wanted: torch.Tensor
) -> torch.Tensor:
    """Losses (tokens,) in float32 of hidden states (tokens, width) under a layer of weight (vocabulary, width).

    Logits are rounded to the format of the weight, as the layer itself would give them. wanted are (tokens,). No
    gradients.
    """
    pieces = zip(hidden.split(TOKENS), wanted.split(TOKENS), strict=True)
    return torch.cat([_losses(*piece, weight, bias) for piece in pieces])


def _losses(
    hidden: torch.Tensor, wanted: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    highest = torch.full((len(hidden),), -torch.inf)
    total, chosen = torch.zeros(len(hidden)), torch.zeros(len(hidden))
    for first in range(0, len(weight), ENTRIES):
        last = min(first + ENTRIES, len(weight))
        part = None if bias is None else bias[first:last]
        logits = functional.linear(hidden, weight[first:last], part).float()
        inside = ((wanted >= first) & (wanted < last)).nonzero().flatten()
        chosen[inside] = logits[inside, wanted[inside] - first]
        higher = torch.maximum(highest, logits.amax(dim=1))
        total *= (highest - higher).exp_()
        total += logits.sub_(higher[:, None]).exp_().sum(dim=1)
        highest = higher
    return highest + total.log_() - chosen
