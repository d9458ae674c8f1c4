"""What helps when a training goes wrong, in the order in which it is worth trying, in English."""

from parameterkit import guidance


def _english(advice: guidance.Advice) -> tuple[str, ...]:
    return tuple(item.en for item in advice.items)


OUT_OF_MEMORY = _english(guidance.OUT_OF_MEMORY)
DIVERGED = _english(guidance.DIVERGED)
LOSS_NOT_FALLING = _english(guidance.LOSS_NOT_FALLING)
OVERFITTING = _english(guidance.OVERFITTING)
SLOW = _english(guidance.SLOW)
