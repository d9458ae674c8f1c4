"""What an optimiser keeps of each trained weight between two steps."""

import math
from collections.abc import Iterable

from trainer_service.estimates.shape import Sizes
from trainer_service.recipes.support import OPTIMIZER_ALIASES

FLOAT = 4
# Tensors with fewer weights stay in float32 with the 8-bit optimisers of bitsandbytes, whose codes have one float32
# scale for each block of 256 weights.
SMALLEST_8BIT = 4096
BLOCK_8BIT = 256
GALORE_RANK = 128
# Tensors of float32 that are as large as the weight: moments, sums of squares, averages.
TENSORS = {
    "adamw_torch": 2,
    "paged_adamw_32bit": 2,
    "stable_adamw": 2,
    "schedule_free_radam": 2,
    "grokadamw": 3,
    "adagrad": 1,
    "rmsprop": 1,
    "sgd": 0,
    "lomo": 0,
}
IN_8BIT = frozenset({"adamw_8bit", "paged_adamw_8bit", "galore_adamw_8bit"})
GALORE = frozenset({"galore_adamw", "galore_adamw_8bit"})
# The gradient of a weight is used up as soon as it is known, so that only the largest is ever there.
WITHOUT_GRADIENTS = frozenset({"lomo"})


def state_bytes(optimizer: str, tensors: Iterable[Sizes]) -> int:
    """Bytes of an optimiser's state for trained tensors of these shapes; an unknown one counts like AdamW."""
    name = OPTIMIZER_ALIASES.get(optimizer, optimizer)
    return sum(_tensor_bytes(name, sizes) for sizes in tensors)


def gradient_bytes(optimizer: str, tensors: Iterable[Sizes]) -> int:
    """Bytes of the gradients of trained tensors; gradients have the format of the weights, float32."""
    sizes = [math.prod(shape) * FLOAT for shape in tensors]
    return max(sizes, default=0) if optimizer in WITHOUT_GRADIENTS else sum(sizes)


def _tensor_bytes(optimizer: str, sizes: Sizes) -> int:
    if optimizer in GALORE and len(sizes) == 2 and min(sizes) > GALORE_RANK:
        return _moments(optimizer, GALORE_RANK * max(sizes)) + FLOAT * GALORE_RANK * min(sizes)  # arXiv:2403.03507
    if optimizer == "adafactor":
        return FLOAT * (sum(sizes) if len(sizes) == 2 else math.prod(sizes))  # arXiv:1804.04235
    return _moments(optimizer, math.prod(sizes))


def _moments(optimizer: str, count: int) -> int:
    if optimizer in IN_8BIT and count >= SMALLEST_8BIT:
        return 2 * (count + FLOAT * (count // BLOCK_8BIT))  # arXiv:2110.02861
    return FLOAT * count * TENSORS.get(optimizer, 2)
