"""What an optimiser keeps of each trained weight between two steps."""

import math
from collections.abc import Iterable

from trainer_service.estimates.shape import Sizes

FLOAT = 4
# Tensors with fewer weights stay in float32 with the 8-bit optimisers of bitsandbytes, whose codes have one float32
# scale for each block of 256 weights.
SMALLEST_8BIT = 4096
BLOCK_8BIT = 256
GALORE_RANK = 128
# Tensors of float32 that are as large as the weight: moments, sums of squares, averages.
TENSORS = {
    "adamw_torch": 2,
    "adamw_torch_fused": 2,
    "stableadamw": 2,
    "stable_adamw": 2,
    "schedule_free_radam": 2,
    "schedule_free_radamw": 2,
    "schedule_free_adamw": 2,
    "grokadamw": 3,
    "adagrad": 1,
    "rmsprop": 1,
    "sgd": 0,
    "lomo": 0,
}
IN_8BIT = frozenset({"adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit"})
GALORE = frozenset({"galore_adamw", "galore_adamw_8bit"})
# The gradient of a weight is used up as soon as it is known, so that only the largest is ever there.
WITHOUT_GRADIENTS = frozenset({"lomo"})


def state_bytes(optimizer: str, tensors: Iterable[Sizes]) -> int:
    """Bytes of an optimiser's state for trained tensors of these shapes; an unknown one counts like AdamW."""
    return sum(_tensor_bytes(optimizer, sizes) for sizes in tensors)


def gradient_bytes(optimizer: str, tensors: Iterable[Sizes]) -> int:
    """Bytes of the gradients of trained tensors; gradients have the format of the weights, float32."""
    sizes = [math.prod(shape) * FLOAT for shape in tensors]
    return max(sizes, default=0) if optimizer in WITHOUT_GRADIENTS else sum(sizes)


def _tensor_bytes(optimizer: str, sizes: Sizes) -> int:
    count = math.prod(sizes)
    if optimizer in IN_8BIT and count >= SMALLEST_8BIT:
        return 2 * (count + FLOAT * (count // BLOCK_8BIT))  # arXiv:2110.02861
    if optimizer in GALORE and len(sizes) == 2:
        return _projected(sizes, 1 if optimizer.endswith("8bit") else FLOAT)
    if optimizer == "adafactor" and len(sizes) == 2:
        return FLOAT * sum(sizes)  # one row and one column of second moments, arXiv:1804.04235
    if optimizer == "adafactor":
        return FLOAT * count
    return FLOAT * count * TENSORS.get(optimizer, 2)


def _projected(sizes: Sizes, width: int) -> int:
    """Two moments in a space of GALORE_RANK dimensions and the projection into it, arXiv:2403.03507."""
    short, long = min(sizes), max(sizes)
    rank = min(GALORE_RANK, short)
    return 2 * rank * long * width + rank * short * FLOAT
