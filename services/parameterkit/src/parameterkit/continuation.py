"""Which parameters a training must share with the one whose checkpoint it goes on from."""

from collections.abc import Mapping
from typing import Any

from parameterkit import rules
from tunesmith.task.v1 import spec_pb2

METHOD = "language_model.method"
SCHEDULE = "training.lr_scheduler_type"
# What the weights and states of a checkpoint depend on: with another of these there is nothing to go on from.
DEPENDS_ON = (
    METHOD,
    "language_model.objective",
    "language_model.labels",
    "language_model.lora.r",
    "language_model.lora.target_modules",
    "language_model.lora.bias",
    "training.optim",
)
ADAPTER_ONLY = "language_model.lora."
PLATEAU = "reduce_lr_on_plateau"  # its state says nothing to the schedules that are functions of the step

Parameters = Mapping[str, Any]


def compared(spec: spec_pb2.FinetuneSpec) -> Parameters:
    """The values at the paths that `refusals` compares, with the platform's defaults."""
    settled = spec_pb2.FinetuneSpec()
    settled.CopyFrom(spec)
    rules.settle_method(settled)
    return {path: rules.value(settled, path) for path in (*DEPENDS_ON, SCHEDULE)}


def differences(before: Parameters, now: Parameters) -> dict[str, tuple[Any, Any]]:
    """Parameters that both know and that differ: what they were and what they are."""
    names = [name for name in now if name in before and before[name] != now[name]]
    return {name: (before[name], now[name]) for name in names}


def refusals(before: Parameters, now: Parameters) -> list[str]:
    """Every parameter that must not differ and does, in words."""
    different = differences(before, now)
    adapts = str(now[METHOD]).lower() != "full"
    names = [name for name in DEPENDS_ON if adapts or not name.startswith(ADAPTER_ONLY)]
    if PLATEAU in different.get(SCHEDULE, ()):
        names.append(SCHEDULE)
    return [
        f"{name} was {different[name][0]!r} there and is {different[name][1]!r} now"
        for name in names
        if name in different
    ]
