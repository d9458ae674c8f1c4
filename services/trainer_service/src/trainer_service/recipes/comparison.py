"""What a checkpoint was made from beside what goes on from it. Imports no training library."""

from collections.abc import Mapping
from typing import Any

from parameterkit.rules import ADAPTER_ONLY, CHECKPOINT_DEPENDS_ON

PLATEAU = "reduce_lr_on_plateau"
SCHEDULE = "training.lr_scheduler_type"

Parameters = Mapping[str, Any]


def differences(before: Parameters, now: Parameters) -> dict[str, tuple[Any, Any]]:
    """Parameters that both know and that differ: what they were and what they are."""
    names = [name for name in now if name in before and before[name] != now[name]]
    return {name: (before[name], now[name]) for name in names}


def refusals(before: Parameters, now: Parameters) -> list[str]:
    """Every parameter that must not differ and does, in words."""
    different = differences(before, now)
    adapts = now["language_model.method"] != "FULL"
    names = [name for name in CHECKPOINT_DEPENDS_ON if adapts or not name.startswith(ADAPTER_ONLY)]
    if PLATEAU in different.get(SCHEDULE, ()):
        names.append(SCHEDULE)
    return [
        f"{name} was {different[name][0]!r} there and is {different[name][1]!r} now"
        for name in names
        if name in different
    ]


def other_base(before: str, now: str) -> str:
    """That a checkpoint's base model is not the one that was named."""
    return f"its base model was {before}, whose files differ from those of {now}"
